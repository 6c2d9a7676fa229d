// One pass over all parameters: SGD and Adam in place, the norm of all gradients, and their scaling. The loops are plain:
// compilers vectorise them, and check whether arrays overlap.
#pragma once

#include "blocks.hpp"
#include "rows.hpp"

namespace throughtime::TT_ISA {

TT_INLINE float root(float x) { return __builtin_sqrtf(x); }
TT_INLINE double root(double x) { return __builtin_sqrt(x); }

// Calls body(segment, index, S()) for every segment, S its type.
template <class Body>
void for_segments(const Segments& p, const Host& host, const Body& body) {
  int64_t size = 0;
  for (int64_t i = 0; i < p.count; ++i) size += p.data[i].size;
  for_blocks(p.count, p.overlap || size < 1 << 15, host, [&](int64_t i, int) {
    if (p.data[i].is_double) body(p.data[i], i, double());
    else body(p.data[i], i, float());
  });
}

inline void sgd(const SGDUpdate& u, const Host& host) {
  for_segments(u, host, [&](const Segment& of, int64_t, auto type) {
    using S = decltype(type);
    S* const p = static_cast<S*>(of.value);
    const S* const g = static_cast<const S*>(of.gradient);
    S* const v = static_cast<S*>(of.state[0]);
    const S lr = S(u.lr), momentum = S(u.momentum);
    if (momentum == 0)
      for (int64_t i = 0; i < of.size; ++i) p[i] -= lr * g[i];
    else
      for (int64_t i = 0; i < of.size; ++i) {
        v[i] = momentum * v[i] + g[i];
        p[i] -= lr * v[i];
      }
  });
}

inline void adam(const AdamUpdate& u, const Host& host) {
  for_segments(u, host, [&](const Segment& of, int64_t, auto type) {
    using S = decltype(type);
    S* const p = static_cast<S*>(of.value);
    const S* const g = static_cast<const S*>(of.gradient);
    S* const m = static_cast<S*>(of.state[0]);
    S* const v = static_cast<S*>(of.state[1]);
    const S step = S(u.lr / (1 - __builtin_pow(u.beta1, double(of.updates))));
    const S correction = S(1 / __builtin_sqrt(1 - __builtin_pow(u.beta2, double(of.updates))));
    const S a1 = S(1 - u.beta1), b2 = S(u.beta2), a2 = S(1 - u.beta2);
    const S eps = S(u.eps), penalty = S(u.penalty), decay = S(u.decay);
    for (int64_t i = 0; i < of.size; ++i) {
      const S d = penalty == 0 ? g[i] : g[i] + penalty * p[i];
      m[i] += a1 * (d - m[i]);
      v[i] = b2 * v[i] + a2 * d * d;
      p[i] = decay * p[i] - step * (m[i] / (root(v[i]) * correction + eps));
    }
  });
}

// The sum of (x / divisor)^2, in float64.
template <bool divides, class S>
double sum_squares(const S* x, int64_t size, double divisor) {
  Vec<double> sums[4] = {};
  for_registers<S>(size, [&](int64_t j, int64_t count, int u) {
    Vec<double> wide[halves<S>];
    widen(load_some<Vec<S>>(x + j, count), wide);
    for (Vec<double>& w : wide) {
      if (divides) w /= divisor;
      sums[u] += w * w;
    }
  });
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// x must hold no NaN.
template <class S>
double largest_size(const S* x, int64_t size) {
  S largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    const S a = x[i] < 0 ? -x[i] : x[i];
    largest = a > largest ? a : largest;
  }
  return double(largest);
}

template <bool divides>
double sum_squares(const Segments& p, double divisor, double* sums, const Host& host) {
  for_segments(p, host, [&](const Segment& of, int64_t i, auto type) {
    sums[i] = sum_squares<divides>(static_cast<const decltype(type)*>(of.gradient), of.size, divisor);
  });
  return sum_blocks(sums, p.count);
}

// Squares of floats are in double's range. Those of doubles may overflow or underflow: then all are first divided by the
// largest.
inline void norm(const GradientNorm& p, const Host& host) {
  double* const sums = scratch<double>(host, p.count);
  const double plain = sum_squares<false>(p, 1, sums, host);
  *p.norm = __builtin_sqrt(plain);
  if ((plain > 1e-250 && plain < __builtin_inf()) || plain != plain) return;
  for_segments(p, host, [&](const Segment& of, int64_t i, auto type) {
    sums[i] = largest_size(static_cast<const decltype(type)*>(of.gradient), of.size);
  });
  double largest = 0;
  for (int64_t i = 0; i < p.count; ++i) largest = sums[i] > largest ? sums[i] : largest;
  *p.norm = largest;
  if (largest > 0 && largest < __builtin_inf()) *p.norm *= __builtin_sqrt(sum_squares<true>(p, largest, sums, host));
}

inline void scale(const GradientScale& p, const Host& host) {
  for_segments(p, host, [&](const Segment& of, int64_t, auto type) {
    using S = decltype(type);
    S* const x = static_cast<S*>(of.value);
    for (int64_t i = 0; i < of.size; ++i) x[i] = S(double(x[i]) * p.factor);
  });
}

}  // namespace throughtime::TT_ISA
