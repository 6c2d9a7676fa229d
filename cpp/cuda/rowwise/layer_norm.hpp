// Residual add and LayerNorm over the features of a row, forward and backward:
//   s = x + scale b    n = (s - <s>) r    r = 1 / sqrt(<(s - <s>)^2> + eps)    y = n weight + bias    (<> is the mean of a row)
//   ds = dsum + r (g - <g> - n <g n>)    g = weight dy    dx = ds    db = scale ds    dweight = sum dy n    dbias = sum dy
// s is rounded to S before it is normalised, so that the backward sees the numbers that the forward saw. All else is float32. The
// mean is kept as two numbers, whose second is what rounding took from the first: rows far from zero keep their digits. Where
// squares would leave the range, mean and r are those of the row times a power of two.
//
// Both are bound by memory: an element is read once and written once. Bytes per element, in numbers of S: forward 4 (x, b; s, y),
// backward 4 (s, dy, dsum; dx), and 5 where the scale is not 1 (db). At 3.35 TB/s an element of float32 takes 4.8 ps for each
// way, one of 16 bits 2.4 ps. Backward, the blocks' parts of dweight and dbias are 8 F bytes for each of one to four blocks of a
// multiprocessor, written and read once: under 2 % of the traffic from 100 rows a block on.
#pragma once

#include "../../kernels.hpp"
#include "../system/runtime.hpp"

namespace throughtime::cuda {

template <class S>
using LayerNormForward = throughtime::LayerNormForward<S, float>;
template <class S>
using LayerNormBackward = throughtime::LayerNormBackward<S, float>;

// S is float, BFloat16 or Float16. `blocks`: by force, for tests; 0: chosen.
template <class S>
void layer_norm_forward(const LayerNormForward<S>&, Stream);
template <class S>
void layer_norm_backward(const LayerNormBackward<S>&, int64_t blocks, Stream);

}  // namespace throughtime::cuda
