// Residual add and LayerNorm over the features of a row, forward and backward, each in one pass over memory:
//   s = x + scale b    n = (s - <s>) r    r = 1 / sqrt(<(s - <s>)^2> + eps)    y = n weight + bias    (<> is the mean of a row)
//   ds = dsum + r (g - <g> - n <g n>)    g = weight dy    dx = ds    db = scale ds    dweight = sum dy n    dbias = sum dy
// The mean is kept as two numbers, whose second is what rounding took from the first: rows far from zero keep their digits.
#pragma once

#include "rows.hpp"

namespace throughtime::TT_ISA {

// What a backward needs of a row.
template <class S>
struct RowStatistics {
  S high, low, rstd;

  template <class V>
  TT_INLINE V normalise(V s) const {
    return (s - high - low) * rstd;
  }
};

template <class S>
class LayerNormForwardRows {
 public:
  static void run(const LayerNormForward<S>& p, const Host& host) {
    LayerNormForwardRows rows(p, host);
    if (streams<S>(p.N, p.F, p.normalised, p.sum)) rows.template run<true>();
    else rows.template run<false>();
  }

 private:
  using V = Vec<S>;
  static constexpr int64_t L = lanes<S>;

  LayerNormForwardRows(const LayerNormForward<S>& problem, const Host& host)
      : p(problem), blocks(p.N, p.F, host), sums(scratch<S>(host, 4 * p.F * host.threads)) {}

  template <bool streamed>
  void run() {
    blocks.run([this](int thread) {
      S* const own = sums + 4 * p.F * thread;
      blocks.for_each(thread, [&](int64_t, Range rows) {
        for_groups(rows, [&](int64_t r, auto count) { group<streamed, count.value>(r, own); });
      });
      if (streamed) stream_fence();
    });
  }

  // n rows from r on. Their sum stays in cache until it has been normalised.
  template <bool streamed, int n>
  void group(int64_t r, S* own) const {
    const int64_t at = r * p.F;
    const bool direct = p.branch && p.sum && !streamed;
    S* const kept = direct ? p.sum + at : own;
    RowStatistics<S> of[n];
    add(at, kept, of);
    const S* const sum = p.branch ? kept : p.x + at;
    measure(sum, next_group<n>(r, p.N) * p.F, of);
    for_registers<S>(p.F, [&](int64_t j, int64_t count) {
      const V weight = load_some<V>(p.weight + j, count), bias = load_some<V>(p.bias + j, count);
#pragma GCC unroll 4
      for (int k = 0; k < n; ++k) {
        const int64_t i = k * p.F + j;
        const V s = load_some<V>(sum + i, count);
        put<streamed>(p.normalised + at + i, of[k].normalise(s) * weight + bias, count);
        if (streamed && p.branch && p.sum) stream(p.sum + at + i, s);
      }
    });
    if (p.statistics) __builtin_memcpy(p.statistics + 3 * r, of, sizeof of);
  }

  // The sums, and their means as far as S holds them, from differences from the first number of a row: where all are equal, these
  // are exactly zero.
  template <int n>
  TT_INLINE void add(int64_t at, S* to, RowStatistics<S> (&of)[n]) const {
    const S scale = S(p.scale);
    const auto sum = [&](int64_t i, int64_t count) {
      const V x = load_some<V>(p.x + at + i, count);
      return p.branch ? x + scale * load_some<V>(p.branch + at + i, count) : x;
    };
    S first[n];
    V total[n] = {};
    for (int k = 0; k < n; ++k) first[k] = sum(k * p.F, p.F < L ? p.F : L)[0];
    for_registers<S>(p.F, [&](int64_t j, int64_t count) {
#pragma GCC unroll 4
      for (int k = 0; k < n; ++k) {
        const V s = sum(k * p.F + j, count);
        if (p.branch) store_some(to + k * p.F + j, s, count);
        total[k] += keep_some<S>(s - first[k], count);
      }
    });
    for (int k = 0; k < n; ++k) of[k].high = S(first[k] + mean(total[k]));
  }

  // The rest of the means, and the variances: differences from a number that is next to the mean lose no digits but those that
  // the whole row shares. Meanwhile the next rows come from memory.
  template <int n>
  TT_INLINE void measure(const S* sum, int64_t next, RowStatistics<S> (&of)[n]) const {
    V total[n] = {}, squares[n] = {};
    for_registers<S>(p.F, [&](int64_t j, int64_t count) {
#pragma GCC unroll 4
      for (int k = 0; k < n; ++k) {
        const int64_t i = k * p.F + j;
        __builtin_prefetch(p.x + next + i);
        if (p.branch) __builtin_prefetch(p.branch + next + i);
        const V d = keep_some<S>(load_some<V>(sum + i, count) - of[k].high, count);
        total[k] += d;
        squares[k] += d * d;
      }
    });
    for (int k = 0; k < n; ++k) {
      const double rest = mean(total[k]), variance = mean(squares[k]) - rest * rest;
      of[k].low = S(rest);
      of[k].rstd = S(1 / __builtin_sqrt((variance < 0 ? 0 : variance) + p.eps));
    }
  }

  double mean(V sum) const { return double(sum_lanes(sum)) / double(p.F); }

  const LayerNormForward<S>& p;
  RowBlocks blocks;
  S* const sums;  // four rows a thread
};

template <class S>
class LayerNormBackwardRows {
 public:
  static void run(const LayerNormBackward<S>& p, const Host& host) {
    LayerNormBackwardRows rows(p, host);
    if (streams<S>(p.N, p.F, p.d_x, p.d_branch)) rows.template run<true>();
    else rows.template run<false>();
  }

 private:
  using V = Vec<S>;

  LayerNormBackwardRows(const LayerNormBackward<S>& problem, const Host& host)
      : p(problem), blocks(p.N, p.F, host), columns(2 * p.F, blocks, host) {}

  template <bool streamed>
  void run() {
    blocks.run([this](int thread) {
      const bool done = blocks.for_each(thread, [&](int64_t block, Range rows) {
        columns.sum_block(thread, block, rows, [&](Range some, S* sums) {
          for_groups(some, [&](int64_t r, auto count) { group<streamed, count.value>(r, sums, sums + p.F); });
        });
      });
      if (streamed) stream_fence();
      if (!done || !blocks.wait(thread)) return;
      columns.total(thread, [&](int64_t j, double sum) { (j < p.F ? p.d_weight[j] : p.d_bias[j - p.F]) = S(sum); });
    });
  }

  // n rows from r on.
  template <bool streamed, int n>
  void group(int64_t r, S* d_weight, S* d_bias) const {
    const int64_t at = r * p.F;
    RowStatistics<S> of[n];
    __builtin_memcpy(of, p.statistics + 3 * r, sizeof of);
    V g_sum[n] = {}, gn_sum[n] = {};
    for_registers<S>(p.F, [&](int64_t j, int64_t count) {
      const V weight = load_some<V>(p.weight + j, count);
      V dw = load_some<V>(d_weight + j, count), db = load_some<V>(d_bias + j, count);
#pragma GCC unroll 4
      for (int k = 0; k < n; ++k) {
        const int64_t i = at + k * p.F + j;
        const V d = load_some<V>(p.d_normalised + i, count), s = of[k].normalise(load_some<V>(p.sum + i, count));
        const V g = d * weight;
        g_sum[k] += g;
        gn_sum[k] += keep_some<S>(g * s, count);  // lanes past F may hold infinity
        dw += d * s;
        db += d;
      }
      store_some(d_weight + j, dw, count);
      store_some(d_bias + j, db, count);
    });
    S g_mean[n], gn_mean[n];
    for (int k = 0; k < n; ++k) g_mean[k] = mean(g_sum[k]), gn_mean[k] = mean(gn_sum[k]);
    const S scale = S(p.scale);
    const int64_t next = next_group<n>(r, p.N) * p.F;
    for_registers<S>(p.F, [&](int64_t j, int64_t count) {
      const V weight = load_some<V>(p.weight + j, count);
#pragma GCC unroll 4
      for (int k = 0; k < n; ++k) {
        const int64_t i = at + k * p.F + j, ahead = next + k * p.F + j;
        __builtin_prefetch(p.d_normalised + ahead);
        __builtin_prefetch(p.sum + ahead);
        if (p.d_sum) __builtin_prefetch(p.d_sum + ahead);
        const V g = load_some<V>(p.d_normalised + i, count) * weight, s = of[k].normalise(load_some<V>(p.sum + i, count));
        const V skip = p.d_sum ? load_some<V>(p.d_sum + i, count) : V{};
        const V ds = skip + of[k].rstd * (g - g_mean[k] - s * gn_mean[k]);
        put<streamed>(p.d_x + i, ds, count);
        if (p.d_branch) put<streamed>(p.d_branch + i, scale * ds, count);
      }
    });
  }

  S mean(V sum) const { return S(double(sum_lanes(sum)) / double(p.F)); }

  const LayerNormBackward<S>& p;
  RowBlocks blocks;
  ColumnSums<S> columns;  // of dweight, then of dbias
};

}  // namespace throughtime::TT_ISA
