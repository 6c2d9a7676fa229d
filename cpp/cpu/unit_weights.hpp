// Parameters that each unit has for itself, in vectors of units: (units, values, lanes), biases first where the cell wants them
// there; and the part of a parameter that a second product uses.
#pragma once

#include "plan.hpp"

namespace throughtime::TT_ISA {

// Calls take(value, row of values (H), parameter) for every number that a unit of this cell has for itself.
template <class C, class Weights, class Take>
void for_unit_values(const Weights& weights, int64_t H, const Take& take) {
  int value = C::bias_inside ? C::gates : 0;
  for (int i = 0; i < max_unit_weights; ++i)
    for (int k = 0; k < C::unit_weights[i].count; ++k) take(value++, weights[unit_weights + i] + k * H, unit_weights + i);
}

template <class C, class S>
S* pack_unit_weights(const Recurrence<S>& p, const Host& host, Interleaved order) {
  constexpr int L = lanes<S>, values = unit_values<C>();
  const int64_t vectors = ceil_div(p.H, L);
  S* packed = scratch<S>(host, vectors * values * L);
  __builtin_memset(packed, 0, size_t(vectors * values * L) * sizeof(S));
  const auto put = [&](int value, const S* from, int) {
    for (int64_t u = 0; from && u < p.H; ++u) packed[(u / L * values + value) * L + u % L] += from[u];
  };
  for_unit_values<C>(p.weights, p.H, put);
  for (int g = 0; C::bias_inside && g < order.gates; ++g)
    for (int bias = bias_ih; bias <= bias_hh; ++bias) put(g, p.weights[bias] ? p.weights[bias] + g * p.H : nullptr, bias);
  return packed;
}

template <class V, int n>
struct UnitValues {
  V value[n];
};

template <int n, class S>
TT_INLINE UnitValues<Vec<S>, n> load_units(const S* packed, int64_t j) {
  UnitValues<Vec<S>, n> values;
  for (int k = 0; k < n; ++k) values.value[k] = load<Vec<S>>(packed + (j * n + k) * lanes<S>);
  return values;
}

// What the second product multiplies with: weight_hr, or the last rows of weight_hh; and its bias.
template <class C, class S, class Weights>
auto second_part(const Weights& weights, const Recurrence<S>& p, Parameter parameter) {
  const auto whole = weights[C::projects && parameter == weight_hh ? weight_hr : parameter];
  if (C::projects) return parameter == weight_hh ? whole : nullptr;
  return whole ? whole + C::recurrent * p.H * (parameter == weight_hh ? p.P : 1) : nullptr;
}

}  // namespace throughtime::TT_ISA
