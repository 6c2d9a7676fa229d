// Residual add and LayerNorm over the features of a row, forward and backward:
//   s = x + scale b    n = (s - <s>) r    r = 1 / sqrt(<(s - <s>)^2> + eps)    y = n weight + bias    (<> is the mean of a row)
//   ds = dsum + r (g - <g> - n <g n>)    g = weight dy    dx = ds    db = scale ds    dweight = sum dy n    dbias = sum dy
// s is rounded to S before it is normalised, so that the backward sees the same numbers as the forward. All else is float32.
// The mean is stored as two numbers, the second being the rounding error of the first, so that rows far from zero keep their
// digits. If squares would leave the range, mean and r are those of the row times a power of two.
//
// Both directions are limited by memory: an element is read once and written once. Traffic per element, in numbers of S:
// forward 4 (x, b; s, y), backward 4 (s, dy, dsum; dx), or 5 if the scale is not 1 (db). At 3.35 TB/s a float32 element takes
// 4.8 ps per direction, a 16-bit element 2.4 ps. In the backward, the blocks' parts of dweight and dbias are 8 F bytes for each
// of one to four blocks per multiprocessor, written and read once: under 2 % of the traffic from 100 rows per block on.
#pragma once

#include "../../kernels.hpp"
#include "../system/runtime.hpp"

namespace throughtime::cuda {

template <class S>
using LayerNormForward = throughtime::LayerNormForward<S, float>;
template <class S>
using LayerNormBackward = throughtime::LayerNormBackward<S, float>;

// S is float, BFloat16 or Float16. `blocks`: override for tests; 0: automatic.
template <class S>
void layer_norm_forward(const LayerNormForward<S>&, Stream);
template <class S>
void layer_norm_backward(const LayerNormBackward<S>&, int64_t blocks, Stream);

}  // namespace throughtime::cuda
