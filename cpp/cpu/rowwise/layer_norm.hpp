// Residual add and LayerNorm over the features of a row, forward and backward, each in one pass over memory:
//   s = x + scale b    n = (s - <s>) r    r = 1 / sqrt(<(s - <s>)^2> + eps)    y = n weight + bias    (<> is the mean of a row)
//   ds = dsum + r (g - <g> - n <g n>)    g = weight dy    dx = ds    db = scale ds    dweight = sum dy n    dbias = sum dy
// The mean is stored as two numbers, the second being the first's rounding error, so that rows far from zero keep their digits.
// If squares would leave the range, mean and r are those of the row times a power of two.
#pragma once

#include "../../row_unit.hpp"
#include "rows.hpp"

namespace throughtime::TT_ISA {

// The values of a row that the backward needs.
template <class S>
struct RowStatistics {
  S high, low, rstd;  // of the row times `unit`
  S unit;

  template <class V>
  TT_INLINE V centre(V s) const {
    return s * unit - high - low;
  }
  template <class V>
  TT_INLINE V normalise(V s) const {
    return centre(s) * rstd;
  }
  // r v
  template <class V>
  TT_INLINE V slope(V v) const {
    return unit * (rstd * v);
  }
};

template <class S>
TT_INLINE double mean_of(const Vec<S> (&sum)[4], int64_t F) {
  return double(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]))) / double(F);
}

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
  static constexpr int64_t W = lanes<S>;

  LayerNormForwardRows(const LayerNormForward<S>& problem, const Host& host)
      : p(problem), blocks(p.N, p.F, host), sums(scratch<S>(host, 2 * p.F * host.threads)) {}

  template <bool streamed>
  void run() {
    blocks.run([this](int thread) {
      blocks.for_each(thread, [&](int64_t, Range rows) { block<streamed>(rows, sums + 2 * p.F * thread); });
      if (streamed) stream_fence();
    });
  }

  // A sum stays in cache until it has been normalised. The next row is added before that, so that its loads and this row's mean
  // and deviation hide each other's latency.
  template <bool streamed>
  void block(Range rows, S* own) const {
    const bool direct = p.branch && p.sum && !streamed;
    const auto place = [=, this](int64_t r) { return direct ? p.sum + r * p.F : own + r % 2 * p.F; };
    S next = rows.begin < rows.end ? add(rows.begin * p.F, place(rows.begin)) : S(0);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t at = r * p.F;
      const S* const sum = p.branch ? place(r) : p.x + at;
      const RowStatistics<S> of = measure(sum, next);
      if (r + 1 < rows.end) next = add(at + p.F, place(r + 1));
      for_registers<S>(p.F, [&](int64_t j, int64_t count, int) {
        const V s = load_some<V>(sum + j, count);
        const V y = of.normalise(s) * load_some<V>(p.weight + j, count) + load_some<V>(p.bias + j, count);
        put<streamed>(p.normalised + at + j, y, count);
        if (streamed && p.branch && p.sum) stream(p.sum + at + j, s);
      });
      if (p.statistics) __builtin_memcpy(p.statistics + 4 * r, &of, sizeof of);
    }
  }

  // Stores the sum and returns its mean rounded to S. The mean comes from differences from the first number, which are exactly
  // zero if all are equal.
  TT_INLINE S add(int64_t at, S* to) const {
    const S scale = p.scale;
    const auto sum = [&](int64_t j, int64_t count) {
      const V x = load_some<V>(p.x + at + j, count);
      return p.branch ? x + scale * load_some<V>(p.branch + at + j, count) : x;
    };
    const S first = sum(0, p.F < W ? p.F : W)[0];
    V total[4] = {};
    for_registers<S>(p.F, [&](int64_t j, int64_t count, int u) {
      const V s = sum(j, count);
      if (p.branch) store_some(to + j, s, count);
      total[u] += keep_some<S>(s - first, count);
    });
    return S(first + mean_of<S>(total, p.F));
  }

  TT_INLINE RowStatistics<S> measure(const S* sum, S high) const {
    const RowStatistics<S> of = measure(sum, high, 1);
    return of.rstd > 0 && of.rstd <= RowUnit<S>::most_rstd ? of : measure_again(sum, of);
  }

  // The mean's second number, and the variance. Differences from a number close to the mean lose only the digits that the whole
  // row shares.
  TT_INLINE RowStatistics<S> measure(const S* sum, S high, S unit) const {
    V total[4] = {}, squares[4] = {};
    for_registers<S>(p.F, [&](int64_t j, int64_t count, int u) {
      const V d = keep_some<S>(load_some<V>(sum + j, count) * unit - high, count);
      total[u] += d;
      squares[u] += d * d;
    });
    const double rest = mean_of<S>(total, p.F), variance = mean_of<S>(squares, p.F) - rest * rest;
    const double rstd = 1 / __builtin_sqrt((variance < 0 ? 0 : variance) + p.eps * unit * unit);
    return {high, S(rest), rstd > RowUnit<S>::most ? RowUnit<S>::most : S(rstd), unit};
  }

  // Measures in a unit that suits the row. Numbers of 1 and above whose squares underflow are all equal: they need none.
  TT_PHASE RowStatistics<S> measure_again(const S* sum, const RowStatistics<S>& of) const {
    const bool tiny = of.rstd > 0;
    if (tiny && !(__builtin_fabs(of.high) < 1)) return of;
    const S unit = tiny ? RowUnit<S>::small : RowUnit<S>::large, first = sum[0] * unit;
    V total[4] = {};
    for_registers<S>(p.F, [&](int64_t j, int64_t count, int u) {
      total[u] += keep_some<S>(load_some<V>(sum + j, count) * unit - first, count);
    });
    return measure(sum, S(first + mean_of<S>(total, p.F)), unit);
  }

  const LayerNormForward<S>& p;
  RowBlocks blocks;
  S* const sums;  // two rows per thread
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
      blocks.for_each(thread, [&](int64_t block, Range rows) {
        columns.sum_block(thread, block, rows, [&](int64_t r, S* sums) { row<streamed>(r, sums, sums + p.F); });
      });
      if (streamed) stream_fence();
    });
    columns.total([this](int64_t j, double sum) { (j < p.F ? p.d_weight[j] : p.d_bias[j - p.F]) = S(sum); });
  }

  // Two passes over a row; the second prefetches the next row (Zen 5: from L3 10 % faster for it, from memory 3 to 10 %).
  template <bool streamed>
  void row(int64_t r, S* d_weight, S* d_bias) const {
    const int64_t at = r * p.F, next = r + 1 < p.N ? at + p.F : at;
    RowStatistics<S> of;
    __builtin_memcpy(&of, p.statistics + 4 * r, sizeof of);
    V g_sum[4] = {}, gn_sum[4] = {};
    for_registers<S>(p.F, [&](int64_t j, int64_t count, int u) {
      const V d = load_some<V>(p.d_normalised + at + j, count), n = of.normalise(load_some<V>(p.sum + at + j, count));
      const V g = d * load_some<V>(p.weight + j, count);
      g_sum[u] += g;
      gn_sum[u] += keep_some<S>(g * n, count);  // lanes past F may hold infinity
      store_some(d_weight + j, load_some<V>(d_weight + j, count) + d * n, count);
      store_some(d_bias + j, load_some<V>(d_bias + j, count) + d, count);
    });
    const S g_mean = S(mean_of<S>(g_sum, p.F)), scale = p.scale;
    const S along = of.rstd * S(mean_of<S>(gn_sum, p.F));  // n <g n> = (s - <s>) along
    for_registers<S>(p.F, [&](int64_t j, int64_t count, int) {
      __builtin_prefetch(p.d_normalised + next + j);
      __builtin_prefetch(p.sum + next + j);
      if (p.d_sum) __builtin_prefetch(p.d_sum + next + j);
      const V d = load_some<V>(p.d_normalised + at + j, count), s = of.centre(load_some<V>(p.sum + at + j, count));
      const V g = d * load_some<V>(p.weight + j, count);
      const V skip = p.d_sum ? load_some<V>(p.d_sum + at + j, count) : V{};
      const V ds = skip + of.slope(g - g_mean - s * along);
      put<streamed>(p.d_x + at + j, ds, count);
      if (p.d_branch) put<streamed>(p.d_branch + at + j, scale * ds, count);
    });
  }

  const LayerNormBackward<S>& p;
  RowBlocks blocks;
  ColumnSums<S> columns;  // of dweight, then of dbias
};

}  // namespace throughtime::TT_ISA
