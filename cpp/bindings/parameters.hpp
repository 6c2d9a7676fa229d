// What the CPU's cells have of their own: their entries, and the shape of what they save.
#pragma once

#include <type_traits>

#include "../cpu/dispatch.hpp"
#include "named.hpp"

namespace throughtime {

template <class S>
const Entries<S>& entries(const CellKernels& cell) {
  if constexpr (std::is_same_v<S, float>) return cell.f32;
  else return cell.f64;
}

// Of one step and sequence: (units, saved, lanes).
template <class S>
Sizes saved_shape(const CellKernels& cell, int64_t H) {
  const int64_t lanes = level().kernels->vector_bytes / int64_t(sizeof(S));
  return {(H + lanes - 1) / lanes, cell.saved, lanes};
}

}  // namespace throughtime
