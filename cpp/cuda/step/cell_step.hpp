// One unit of one sequence at one step: loads and stores of the cell's numbers.
#pragma once

#include "../../cells/cell.hpp"
#include "../../step/rules.hpp"
#include "../../step/zoneout.hpp"
#include "../system/device.hpp"

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

// The same for a product plus its bias, which may be null.
template <int n, class S>
TT_DEVICE void load_product(const float* rows, const S* bias, int64_t H, int64_t j, float* values) {
  load_unit<n>(rows, H, j, values);
  for (int k = 0; bias && k < n; ++k) values[k] += to_float(bias[k * H + j]);
}

// Zoneout's fraction of the old state i of unit j.
template <class S>
TT_DEVICE float zoneout_fraction(const Zoneout<S>& zoneout, int i, int64_t t, int64_t b, int64_t j) {
  return zoneout.template fraction<float>(i, t, b, j, [](const uint8_t* from, int64_t) { return float(*from); });
}

}  // namespace throughtime::cuda
