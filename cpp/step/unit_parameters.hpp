// Parameters that each unit has for itself, biases first where the cell wants them there; and the part of a parameter that a
// second product uses.
#pragma once

#include "../cells/cell.hpp"

namespace throughtime::TT_ISA {

// Calls take(value, row (H)) for every parameter that a unit of this cell has for itself; a bias may be there twice, or not at
// all.
template <class C, class Weights, class Take>
void for_unit_values(const Weights& weights, int64_t H, const Take& take) {
  int value = 0;
  for (; C::bias_inside && value < int(C::gates); ++value)
    for (int bias = bias_ih; bias <= bias_hh; ++bias)
      if (weights[bias]) take(value, weights[bias] + value * H);
  for (int i = 0; i < max_unit_weights; ++i)
    for (int k = 0; k < C::unit_weights[i].count; ++k) take(value++, weights[unit_weights + i] + k * H);
}

// The weight of the second product: weight_hr, or the last rows of weight_hh; and its bias.
template <class C, class S, class Weights>
auto second_part(const Weights& weights, const Recurrence<S>& p, Parameter parameter) {
  const auto whole = weights[C::projects && parameter == weight_hh ? weight_hr : parameter];
  if (C::projects) return parameter == weight_hh ? whole : nullptr;
  return whole ? whole + C::recurrent * p.H * (parameter == weight_hh ? p.P : 1) : nullptr;
}

}  // namespace throughtime::TT_ISA
