// What forward and backward of LayerNorm share.
#pragma once

#include "layer_norm.hpp"
#include "row.hpp"

namespace throughtime::cuda {

// What a backward needs of a row.
struct RowStatistics {
  float high, low, rstd;

  TT_DEVICE float normalise(float s) const { return (s - high - low) * rstd; }
  TT_DEVICE void store(float* to) const { to[0] = high, to[1] = low, to[2] = rstd; }
  TT_DEVICE static RowStatistics load(const float* from) { return {from[0], from[1], from[2]}; }
};

// Whether all arrays, null or not, begin at a multiple of 16 bytes, and so do their rows of F numbers.
template <class S, class... Pointers>
bool rows_are_aligned(int64_t F, const Pointers*... arrays) {
  return F * int64_t(sizeof(S)) % 16 == 0 && ((reinterpret_cast<uintptr_t>(arrays) % 16 == 0) && ...);
}

}  // namespace throughtime::cuda
