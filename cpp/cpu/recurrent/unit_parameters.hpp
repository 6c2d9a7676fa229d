// Per-unit parameters packed in vectors of units, (units, values, lanes), and their gradients.
#pragma once

#include "../../step/unit_parameters.hpp"
#include "plan.hpp"

namespace throughtime::TT_ISA {

template <class C, class S>
S* pack_unit_parameters(const Recurrence<S>& p, const Host& host) {
  constexpr int W = lanes<S>, values = unit_parameter_count<C>();
  const int64_t size = ceil_div(p.H, W) * values * W;
  S* packed = scratch<S>(host, size);
  __builtin_memset(packed, 0, size_t(size) * sizeof(S));
  for_unit_parameters<C>(p.weights, p.H, [&](int value, const S* from) {
    for (int64_t u = 0; u < p.H; ++u) packed[(u / W * values + value) * W + u % W] += from[u];
  });
  return packed;
}

// Loads the parameters of vector j of units.
template <int count, class S>
TT_INLINE void load_units(const S* packed, int64_t j, Vec<S>* w) {
  for (int k = 0; k < count; ++k) w[k] = load<Vec<S>>(packed + (j * count + k) * lanes<S>);
}

// The gradients of per-unit parameters: for each sequence over the chunk, and the total so far in float64. If norms are
// requested, each step of the chunk has its own place.
template <class C, class S>
class UnitGradients {
  using V = Vec<S>;
  static constexpr int W = lanes<S>, values = unit_parameter_count<C>();

 public:
  void prepare(const Host& host, int64_t of_B, int64_t of_H, int64_t steps) {
    B = of_B, H = of_H, places = steps;
    units = ceil_div(H, W) * W;
    recent = scratch<S>(host, places * B * size());
    sums = scratch<double>(host, size());
  }

  void clear(int parts, int index) const {
    const Range own = share(size(), parts, index), all = share(places * B * size(), parts, index);
    for (int64_t i = own.begin; i < own.end; ++i) sums[i] = 0;
    for (int64_t i = all.begin; i < all.end; ++i) recent[i] = 0;
  }

  TT_INLINE void add(int64_t step, int64_t b, int64_t j, int value, V gradient) const {
    S* into = recent + ((step % places * B + b) * values + value) * units + j * W;
    gradient = keep_some<S>(gradient, H - j * W);
    asm("" : "+m"(gradient));  // prevents an FMA: the sum's bits would depend on `places`
    store(into, load<V>(into) + gradient);
  }

  // Adds the gradients of steps `begin` to `end` - 1 to the total, in the same order for any `places`.
  void close_chunk(int64_t begin, int64_t end, int parts, int index) const {
    const Range own = share(size(), parts, index, W);
    if (places == 1) begin = end - 1;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = own.begin; i < own.end; ++i) {
        S total = 0;
        for (int64_t step = end - 1; step >= begin; --step) {
          S& gradient = recent[(step % places * B + b) * size() + i];
          total += gradient;
          gradient = 0;
        }
        sums[i] += double(total);
      }
  }

  // Calls put(parameter, norm of the step's contribution to its gradient); `rows` has room for B pointers.
  template <class Norm, class Put>
  void norms(Norm& norm, int64_t step, const S** rows, const Put& put) const {
    const auto of_values = [&](int64_t first, int64_t count) {
      for (int64_t b = 0; b < B; ++b) rows[b] = recent + ((step % places * B + b) * values + first) * units;
      return norm.of_bias(rows, count * units, B);
    };
    for (int bias = bias_ih; C::bias_inside && bias <= bias_hh; ++bias) put(bias, of_values(first_value<C>(bias), C::gates));
    int first = bias_values<C>();
    for (int i = 0; i < max_unit_parameters && C::unit_parameters[i].name; first += C::unit_parameters[i++].count)
      put(first_unit_parameter + i, of_values(first, C::unit_parameters[i].count));
  }

  template <class Gradients>
  void unpack(const Gradients& gradients) const {
    for_unit_parameters<C>(gradients, H, [&](int value, S* into) {
      for (int64_t u = 0; u < H; ++u) into[u] = S(sums[value * units + u]);
    });
  }

 private:
  int64_t size() const { return values * units; }

  S* recent;     // (places, B, values, units)
  double* sums;  // (values, units)
  int64_t B, H, places, units;
};

}  // namespace throughtime::TT_ISA
