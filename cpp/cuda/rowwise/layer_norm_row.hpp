// The common part of forward and backward of LayerNorm.
#pragma once

#include "../../row_unit.hpp"
#include "layer_norm.hpp"
#include "row_threads.hpp"

namespace throughtime::cuda {

// Stored by the forward for the backward.
struct RowStatistics {
  float high, low, rstd;  // of the row times `unit`; the mean is high + low
  float unit;

  TT_DEVICE float normalise(float s) const { return (s * unit - high - low) * rstd; }
  TT_DEVICE float slope(float v) const { return unit * (rstd * v); }  // r v
  TT_DEVICE void store(float* to) const { to[0] = high, to[1] = low, to[2] = rstd, to[3] = unit; }
  TT_DEVICE static RowStatistics load(const float* from) { return {from[0], from[1], from[2], from[3]}; }

  // The unit that suits the row: 1 also if squares underflow around a mean of 1 or more, because all numbers are equal then.
  TT_DEVICE float better_unit() const {
    if (!(rstd > 0)) return RowUnit<float>::large;
    return rstd > RowUnit<float>::most_rstd && high < 1 && high > -1 ? RowUnit<float>::small : 1.0f;
  }
};

// Whether all arrays, null or not, begin at a multiple of 16 bytes, and so do their rows of F numbers.
template <class S, class... Pointers>
bool rows_are_aligned(int64_t F, const Pointers*... arrays) {
  return F * int64_t(sizeof(S)) % 16 == 0 && ((reinterpret_cast<uintptr_t>(arrays) % 16 == 0) && ...);
}

}  // namespace throughtime::cuda
