// What both time loops do with one unit of one sequence at one step: its numbers between memory and the cell, and zoneout
// (Krueger et al. 2017: a unit keeps its old state where a mask says so; without masks, the expectation of that).
#pragma once

#include "../cells/cell.hpp"
#include "../steps.hpp"
#include "device.hpp"

namespace throughtime::cuda {

// Column j of n rows of H numbers.
template <int n, class From>
TT_DEVICE void load_unit(const From* rows, int64_t H, int64_t j, float* values) {
  for (int k = 0; k < n; ++k) values[k] = to_float(rows[k * H + j]);
}
template <int n, class To>
TT_DEVICE void store_unit(To* rows, int64_t H, int64_t j, const float* values) {
  for (int k = 0; k < n; ++k) from_float(values[k], rows[k * H + j]);
}

// The same of a product, with its bias, which may be null.
template <int n, class S>
TT_DEVICE void load_product(const float* rows, const S* bias, int64_t H, int64_t j, float* values) {
  load_unit<n>(rows, H, j, values);
  for (int k = 0; bias && k < n; ++k) values[k] += to_float(bias[k * H + j]);
}

// The first phase of a cell; m where it has a second product.
template <class C>
TT_DEVICE void run_cell(const float* x, const float* r, const float* old, const float* w, float* next, float* a, float* m) {
  if constexpr (C::phases == Phases::two_products) C::forward(x, r, old, next, a, m);
  else if constexpr (C::phases == Phases::one && unit_values<C>() > 0) C::forward(x, r, old, w, next, a);
  else C::forward(x, r, old, next, a);
}

template <class S>
struct Zoneout {
  const Recurrence<S>& p;

  TT_DEVICE bool any(int i) const { return p.zoneout_mask[i] || p.zoneout[i] > 0; }

  // The part of the old state i of unit j in the new one.
  TT_DEVICE float part(int i, int64_t t, int64_t b, int64_t j) const {
    if (!p.zoneout_mask[i]) return float(p.zoneout[i]);
    return float(p.zoneout_mask[i][(t * p.B + b) * (i == 0 ? p.P : p.H) + j]);
  }

  // Chosen, not multiplied, where the part is 0 or 1.
  TT_DEVICE static float mix(float part, float old, float next) {
    return part > 0 ? (part < 1 ? part * old + (1 - part) * next : old) : next;
  }
};

}  // namespace throughtime::cuda
