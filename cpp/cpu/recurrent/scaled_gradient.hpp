// Gradient flow beyond the range of floats. The carried gradient of each sequence is divided by 2^exponent, rescaled to be near
// 1 before every step. The norms of each step's total dL/dh_t are stored as logarithms.
#pragma once

#include "plan.hpp"

namespace throughtime::TT_ISA {

template <class S>
class ScaledGradient {
  using V = Vec<S>;
  static constexpr int W = lanes<S>;

 public:
  void prepare(const Backward<S>& problem, const Host& host) {
    p = &problem;
    const int64_t threads = host.threads;
    largest = scratch<S>(host, threads * p->B * W);
    losses = scratch<S>(host, threads * p->B);
    exponents = scratch<int32_t>(host, threads * p->B);
    __builtin_memset(exponents, 0, size_t(threads * p->B) * sizeof(int32_t));
    wide = scratch<double>(host, threads * p->B * p->P);
    sums = scratch<double>(host, threads * p->P);
    powers = scratch<int64_t>(host, threads * p->P);
  }

  // Call before observing the gradient carried into a step.
  void clear(int thread, Range b) const {
    __builtin_memset(largest + (thread * p->B + b.begin) * W, 0, size_t((b.end - b.begin) * W) * sizeof(S));
  }

  // Records the largest magnitudes of a vector of sequence b.
  TT_INLINE void observe(int thread, int64_t b, V value) const {
    S* into = largest + (thread * p->B + b) * W;
    const V magnitude = value < 0 ? -value : value, before = load<V>(into);
    store(into, before < magnitude ? magnitude : before);
  }

  // Returns the factor that rescales the carried gradient of sequence b to its exponent at timestep t, from the loss's exponent
  // and the maxima that threads first..first + parts - 1 observed. Each of these threads calls it.
  S rescale(int thread, int first, int parts, int64_t t, int64_t b, bool idle) const {
    V all = {};
    for (int i = first; i < first + parts; ++i) {
      const V part = load<V>(largest + (i * p->B + b) * W);
      all = all < part ? part : all;
    }
    const S top = largest_lane(all);
    int32_t& exponent = exponents[thread * p->B + b];
    const int32_t before = exponent, loss = idle ? no_exponent : p->d_output_exponent[t * p->B + b];
    if (top > 0) exponent = before + int32_t(power(double(top))) - 1023;
    else if (loss != no_exponent) exponent = loss;
    if (loss > exponent) exponent = loss;
    losses[thread * p->B + b] = loss == no_exponent ? S(0) : scale(int64_t(loss) - exponent);
    return scale(int64_t(before) - exponent);
  }

  int32_t exponent(int thread, int64_t b) const { return exponents[thread * p->B + b]; }

  // The loss's contribution to vector q of dL/dh.
  TT_INLINE V loss(int thread, int64_t t, int64_t b, int64_t q) const {
    const S factor = losses[thread * p->B + b];
    if (factor == 0) return V{};
    return load_some<V>(p->d_output.data + t * p->d_output.time + b * p->d_output.batch + q * W, p->P - q * W) * factor;
  }

  // Stores the norms of timestep t; `total` (B, P) is dL/dh divided by 2^exponent.
  TT_PHASE void find_norms(int thread, int64_t t, const S* total) const {
    const int64_t B = p->B, P = p->P;
    const int32_t* exponent = p->exponent + t * B;
    double* rows = wide + thread * B * P;
    for (int64_t i = 0; i < B * P; ++i) rows[i] = double(total[i]);
    for (int64_t b = 0; b < B; ++b) {
      int64_t top = 0;
      for (int64_t u = 0; u < P; ++u) {
        const int64_t own = power(rows[b * P + u]);
        top = own > top ? own : top;
      }
      p->log10_sequence[t * B + b] = logarithm(squares(rows + b * P, two_to(2046 - top)), exponent[b] + top - 1023);
    }
    of_units(rows, exponent, sums + thread * P, powers + thread * P);
    for (int64_t u = 0; u < P; ++u) p->log10_unit[t * P + u] = logarithm(sums[thread * P + u], powers[thread * P + u] - 1023);
  }

 private:
  // Sums each unit's squares over the batch, divided by 4^(top - 1023); `top` is the power of its largest entry.
  void of_units(const double* rows, const int32_t* exponent, double* sum, int64_t* top) const {
    const int64_t B = p->B, P = p->P;
    for (int64_t u = 0; u < P; ++u) top[u] = no_exponent, sum[u] = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t u = 0; u < P; ++u) {
        const int64_t own = power(rows[b * P + u]), all = own ? own + exponent[b] : int64_t(no_exponent);
        top[u] = all > top[u] ? all : top[u];
      }
    for (int64_t b = 0; b < B; ++b)
      for (int64_t u = 0; u < P; ++u) {
        const double part = rows[b * P + u] * two_to(exponent[b] - top[u] + 2046);
        sum[u] += part * part;
      }
  }

  double squares(const double* row, double factor) const {
    using D = Vec<double>;
    D sum = {};
    for (int64_t u = 0; u < p->P; u += lanes<double>) {
      const D part = load_some<D>(row + u, p->P - u) * factor;
      sum += part * part;
    }
    return sum_lanes(sum);
  }

  // The exponent of a normal number, plus 1023; of zero, 0.
  TT_INLINE static int64_t power(double value) {
    uint64_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return int64_t(bits >> 52 & 0x7ff);
  }

  // 2^(power - 1023); zero below the range.
  TT_INLINE static double two_to(int64_t power) {
    const uint64_t bits = uint64_t(power < 0 ? 0 : power > 2046 ? 2046 : power) << 52;
    double value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }

  static S scale(int64_t exponent) {
    constexpr int64_t most = sizeof(S) == sizeof(float) ? 127 : 1023;
    return S(two_to((exponent > most ? most : exponent) + 1023));
  }

  // log10(sqrt(squares) 2^exponent)
  static double logarithm(double squares, int64_t exponent) {
    constexpr double log10_of_2 = 0.301029995663981195;
    return squares == 0 ? -__builtin_inf() : (__builtin_log2(squares) / 2 + double(exponent)) * log10_of_2;
  }

  const Backward<S>* p = nullptr;
  S* largest;           // (threads, B, lanes): of the carried gradient, over each thread's units
  S* losses;            // (threads, B): factor of the loss
  int32_t* exponents;   // (threads, B)
  double *wide, *sums;  // (threads, B, P), (threads, P)
  int64_t* powers;      // (threads, P)
};

}  // namespace throughtime::TT_ISA
