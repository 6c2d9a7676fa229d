// Iterates over the parameters of units, including biases inside the cell; finds the second product's part of a parameter.
#pragma once

#include "../cells/cell.hpp"

namespace throughtime::TT_ISA {

// Calls take(value, row (H)) for parameter number `value` of the units. Null biases are skipped; without C::biases_apart, b_ih
// and b_hh have the same numbers.
template <class C, class Weights, class Take>
void for_unit_parameters(const Weights& weights, int64_t H, const Take& take) {
  for (int bias = bias_ih; C::bias_inside && bias <= bias_hh; ++bias)
    for (int g = 0; weights[bias] && g < int(C::gates); ++g) take(first_value<C>(bias) + g, weights[bias] + g * H);
  int value = bias_values<C>();
  for (int i = 0; i < max_unit_parameters; ++i)
    for (int k = 0; k < C::unit_parameters[i].count; ++k) take(value++, weights[first_unit_parameter + i] + k * H);
}

// For weight_hh: weight_hr, or the last rows of weight_hh. For a bias: null if the cell projects, or the last rows.
template <class C, class S, class Weights>
auto second_part(const Weights& weights, const Recurrence<S>& p, Parameter parameter) {
  const auto whole = weights[C::projects && parameter == weight_hh ? weight_hr : parameter];
  if (C::projects) return parameter == weight_hh ? whole : nullptr;
  return whole ? whole + C::recurrent * p.H * (parameter == weight_hh ? p.P : 1) : nullptr;
}

}  // namespace throughtime::TT_ISA
