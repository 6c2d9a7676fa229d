// Backward of LayerNorm for rows that do not fit in registers: each number is read twice more, from L2 if it is still there.
#pragma once

#include "layer_norm_row.hpp"

namespace throughtime::cuda {

// dx, one block per row.
template <class S, int E>
TT_KERNEL TT_LAUNCH_BOUNDS(most_row_threads, 2) void backward_long_rows(LayerNormBackward<S> p) {
  RowThreads of(threads());
  const int64_t at = block() * p.F;
  const RowStatistics statistics = RowStatistics::load(p.statistics + 4 * int64_t(block()));
  const int pieces = int(p.F / E);
  float sums[2] = {}, d[E], s[E], w[E];
  const auto load = [&](int k) {
    from_word<S, E>(words<S, E>(p.d_normalised + at)[k], d);
    from_word<S, E>(words<S, E>(p.sum + at)[k], s);
    from_word<S, E>(words<S, E>(p.weight)[k], w);
    for (int e = 0; e < E; ++e) s[e] = statistics.normalise(s[e]), d[e] *= w[e];
  };
  for (int k = of.rank; k < pieces; k += threads()) {
    load(k);
    for (int e = 0; e < E; ++e) sums[0] += d[e], sums[1] += d[e] * s[e];
  }
  of.sum(sums);
  const float g_mean = sums[0] / float(p.F), gn_mean = sums[1] / float(p.F);
  for (int k = of.rank; k < pieces; k += threads()) {
    float skip[E] = {};
    load(k);
    if (p.d_sum) from_word<S, E>(words<S, E>(p.d_sum + at)[k], skip);
    for (int e = 0; e < E; ++e) s[e] = skip[e] + statistics.slope(d[e] - g_mean - s[e] * gn_mean);
    words<S, E>(p.d_x + at)[k] = to_word<S, E>(s);
    for (int e = 0; e < E; ++e) s[e] *= p.scale;
    if (p.d_branch) words<S, E>(p.d_branch + at)[k] = to_word<S, E>(s);
  }
}

// The parts of dweight and dbias: each thread sums a column over its block's stretch of rows.
template <class S>
TT_KERNEL TT_LAUNCH_BOUNDS(most_row_threads, 2) void sum_columns(LayerNormBackward<S> p, float* parts, int stretches) {
  const int64_t j = int64_t(block()) * threads() + thread();
  if (j >= p.F) return;
  const int64_t begin = p.N * block_y() / stretches, end = p.N * (block_y() + 1) / stretches;
  float d_weight = 0, d_bias = 0;
  for (int64_t row = begin; row < end; ++row) {
    const float d = to_float(p.d_normalised[row * p.F + j]);
    d_weight += d * RowStatistics::load(p.statistics + 4 * row).normalise(to_float(p.sum[row * p.F + j]));
    d_bias += d;
  }
  float* const own = parts + block_y() * 2 * p.F;
  own[j] = d_weight, own[p.F + j] = d_bias;
}

}  // namespace throughtime::cuda
