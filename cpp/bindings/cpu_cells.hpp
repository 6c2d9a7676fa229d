// The CPU's side of a cell: its entries, the shape of its saved values, and its number of operations.
#pragma once

#include <type_traits>

#include "../cpu/system/dispatch.hpp"
#include "cell_parameters.hpp"

namespace throughtime {

template <class S>
const Entries<S>& entries(const CellKernels& cell) {
  if constexpr (std::is_same_v<S, float>) return cell.f32;
  else return cell.f64;
}

// The saved values of one step, in vectors of units: (units, B, saved, lanes), or (B, units, saved, lanes) of a whole-row cell.
template <class S>
Sizes saved_shape(const CellKernels& cell, int64_t B, int64_t H) {
  const int64_t lanes = level().kernels->vector_bytes / int64_t(sizeof(S)), units = (H + lanes - 1) / lanes;
  return {cell.whole_rows ? B : units, cell.whole_rows ? units : B, cell.saved, lanes};
}

// The floating-point operations of one pass's products.
template <class S>
double operations(const CellKernels& cell, const Recurrence<S>& p) {
  return 2.0 * double(cell.gates * p.H) * double(p.I + p.P) * double(p.T * p.B);
}

}  // namespace throughtime
