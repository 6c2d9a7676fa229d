// Residual add and LayerNorm over the features of a row, forward and backward:
//   s = x + scale b    n = (s - <s>) r    r = 1 / sqrt(<(s - <s>)^2> + eps)    y = n weight + bias    (<> is the mean of a row)
//   ds = dsum + r (g - <g> - n <g n>)    g = weight dy    dx = ds    db = scale ds    dweight = sum dy n    dbias = sum dy
// s is rounded to S before it is normalised, so that the backward sees the numbers that the forward saw. All else is float32. The
// mean is kept as two numbers, whose second is what rounding took from the first: rows far from zero keep their digits.
//
// Both are bound by memory: an element is read once and written once. Bytes per element, in numbers of S: forward 4 (x, b; s, y),
// backward 4 (s, dy, dsum; dx), and 5 where the scale is not 1 (db). At 3.35 TB/s an element of float32 takes 4.8 ps for each
// way, one of 16 bits 2.4 ps. Backward, the blocks' parts of dweight and dbias are 8 F bytes for each of one to four blocks of a
// multiprocessor, written and read once: under 2 % of the traffic from 100 rows a block on.
#pragma once

#include "runtime.hpp"

namespace throughtime::cuda {

// N rows of F features, without gaps.
template <class S>
struct LayerNormForward {
  int64_t N, F;
  float scale, eps;
  const S* x;         // (N, F)
  const S* branch;    // (N, F), or null: x itself is normalised, and there is no sum
  const S* weight;    // (F)
  const S* bias;      // (F)
  S* sum;             // (N, F): x + scale branch, or null
  S* normalised;      // (N, F)
  float* statistics;  // (N, 3): what a backward needs of each row, or null
};

template <class S>
struct LayerNormBackward {
  int64_t N, F;
  float scale;
  const S* sum;             // (N, F); x where there was no branch
  const S* weight;          // (F)
  const float* statistics;  // (N, 3)
  const S* d_sum;           // (N, F), or null
  const S* d_normalised;    // (N, F)
  S* d_x;                   // (N, F)
  S* d_branch;              // (N, F): scale d_x, or null
  S* d_weight;              // (F)
  S* d_bias;                // (F)
  int64_t blocks;           // by force, for tests; 0: chosen
};

// S is float, BFloat16 or Float16.
template <class S>
void layer_norm_forward(const LayerNormForward<S>&, Queue);
template <class S>
void layer_norm_backward(const LayerNormBackward<S>&, Queue);

}  // namespace throughtime::cuda
