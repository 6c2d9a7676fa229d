// Embedding: y_n = W[i_n], and dW[r] = sum of dy_n over the n with i_n = r, in float64 and in the order of n.
#pragma once

#include "blocks.hpp"
#include "rows.hpp"

namespace throughtime::TT_ISA {

template <class S>
void embedding_forward(const EmbeddingForward<S>& p, const Host& host) {
  const int64_t rows = rows_per_block(p.N);
  for_blocks_until_stopped(ceil_div(p.N, rows), p.N * p.F < 1 << 15, host, [&](int64_t block, int) {
    for (int64_t n = block * rows; n < p.N && n < (block + 1) * rows; ++n)
      __builtin_memcpy(p.output + n * p.F, p.weight + p.indices[n] * p.F, size_t(p.F) * sizeof(S));
  });
}

// The rows n sorted by their index; those of index r end at ends[r].
struct RowsOfIndex {
  int64_t *ends, *rows;

  RowsOfIndex(const int64_t* indices, int64_t N, int64_t count, const Host& host)
      : ends(scratch<int64_t>(host, count)), rows(scratch<int64_t>(host, N)) {
    for (int64_t r = 0; r < count; ++r) ends[r] = 0;
    for (int64_t n = 0; n < N; ++n) ++ends[indices[n]];
    for (int64_t r = 0, begin = 0; r < count; ++r) {
      const int64_t occurs = ends[r];
      ends[r] = begin;
      begin += occurs;
    }
    for (int64_t n = 0; n < N; ++n) rows[ends[indices[n]]++] = n;
  }

  Range of(int64_t r) const { return {r ? ends[r - 1] : 0, ends[r]}; }
};

// Sums `registers` registers of dW[r] from column j on; of a partial one, only `count` numbers.
template <int registers, class S>
TT_INLINE void sum_rows(const EmbeddingBackward<S>& p, const RowsOfIndex& sorted, int64_t r, int64_t j, int64_t count) {
  Vec<double> sums[registers][halves<S>] = {};
  const Range own = sorted.of(r);
  for (int64_t i = own.begin; i < own.end; ++i)
    for (int k = 0; k < registers; ++k) {
      Vec<double> d[halves<S>];
      widen(load_some<Vec<S>>(p.d_output + sorted.rows[i] * p.F + j + k * lanes<S>, count), d);
      for (int h = 0; h < halves<S>; ++h) sums[k][h] += d[h];
    }
  for (int k = 0; k < registers; ++k) store_some(p.d_weight + r * p.F + j + k * lanes<S>, narrow(sums[k]), count);
}

// Blocks of rows and of columns, so that threads also share a row that most indices name.
template <class S>
void embedding_backward(const EmbeddingBackward<S>& p, const Host& host) {
  constexpr int64_t W = lanes<S>, width = 64;
  const RowsOfIndex sorted(p.indices, p.N, p.count, host);
  const int64_t rows = ceil_div(p.count, 64), across = ceil_div(p.F, width);
  for_blocks_until_stopped(ceil_div(p.count, rows) * across, (p.N + p.count) * p.F < 1 << 15, host, [&](int64_t block, int) {
    const int64_t first = block / across * rows, left = block % across * width, right = left + width < p.F ? left + width : p.F;
    for (int64_t r = first; r < p.count && r < first + rows; ++r) {
      int64_t j = left;
      for (; j + 4 * W <= right; j += 4 * W) sum_rows<4>(p, sorted, r, j, W);
      for (; j < right; j += W) sum_rows<1>(p, sorted, r, j, right - j);
    }
  });
}

}  // namespace throughtime::TT_ISA
