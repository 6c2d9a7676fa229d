// Packs matrices into tile order: panels of `vectors` registers, (panel, K, vectors, lanes), zero past the matrix's end. Gate
// rows are interleaved: vector q holds gate q % G of the units of unit vector q / G, so that one tile holds all gates of the
// same units. Only this file and the tile that reads it know the packed layout.
#pragma once

#include "vec.hpp"

namespace throughtime::TT_ISA {

TT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
};

// The index-th of `parts` parts of [0, n), cut at multiples of `quantum`.
inline Range share(int64_t n, int parts, int index, int64_t quantum = 1) {
  const int64_t quanta = ceil_div(n, quantum);
  const int64_t begin = quanta * index / parts * quantum, end = quanta * (index + 1) / parts * quantum;
  return {begin < n ? begin : n, end < n ? end : n};
}

// The gate rows of a (G H, ...) array in interleaved order.
struct Interleaved {
  int64_t gates, units, lanes;

  int64_t vectors() const { return ceil_div(units, lanes) * gates; }
  // The row at this lane of this vector, or -1 in the padding.
  int64_t row(int64_t vector, int64_t lane) const {
    const int64_t unit = vector / gates * lanes + lane;
    return unit < units ? vector % gates * units + unit : -1;
  }
};

// Calls put(k, rows[:][k]) for k < K; a null row counts as zeros.
template <class S, class Put>
void transpose_rows(const S* const* rows, int64_t count, int64_t K, const Put& put) {
  using V = Vec<S>;
  constexpr int n = lanes<S>;
  for (int64_t k = 0; k < K; k += n) {
    V block[n];
    for (int i = 0; i < n; ++i) block[i] = i < count && rows[i] ? load_some<V>(rows[i] + k, K - k) : V{};
    transpose(block);
    for (int i = 0; i < n && k + i < K; ++i) put(k + i, block[i]);
  }
}

// Packs panels whose outputs are the gate rows of weight (G H, K): packed[q][k] = weight[row of q][k], for the vectors in
// `range`. Rows are `stride` apart.
template <int vectors, class S>
void pack_rows(const S* weight, int64_t stride, int64_t K, Interleaved order, Range range, S* packed) {
  constexpr int n = lanes<S>;
  for (int64_t q = range.begin; q < range.end; ++q) {
    const S* rows[n];
    for (int lane = 0; lane < n; ++lane) {
      const int64_t row = order.row(q, lane);
      rows[lane] = row < 0 ? nullptr : weight + row * stride;
    }
    S* to = packed + (q / vectors * K * vectors + q % vectors) * n;
    transpose_rows(rows, n, K, [to](int64_t k, Vec<S> value) { store(to + k * vectors * n, value); });
  }
}

// Packs panels whose outputs are the columns of weight (G H, N), summed over its gate rows in interleaved order, for the panels
// in `range`. Rows are `stride` apart.
template <int vectors, class S>
void pack_columns(const S* weight, int64_t stride, int64_t N, Interleaved order, Range range, S* packed) {
  constexpr int n = lanes<S>;
  const int64_t K = order.vectors() * n;
  for (int64_t q = 0; q < order.vectors(); ++q)
    for (int64_t lane = 0; lane < n; ++lane) {
      const int64_t row = order.row(q, lane);
      for (int64_t panel = range.begin; panel < range.end; ++panel)
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t column = (panel * vectors + v) * n;
          const bool inside = row >= 0 && column < N;
          store(packed + ((panel * K + q * n + lane) * vectors + v) * n,
                inside ? load_some<Vec<S>>(weight + row * stride + column, N - column) : Vec<S>{});
        }
    }
}

// Packs a (G H) vector in interleaved order; null gives zeros.
template <class S>
void pack_vector(const S* from, Interleaved order, S* packed) {
  for (int64_t q = 0; q < order.vectors(); ++q)
    for (int64_t lane = 0; lane < order.lanes; ++lane) {
      const int64_t row = order.row(q, lane);
      packed[q * order.lanes + lane] = from && row >= 0 ? from[row] : S(0);
    }
}

}  // namespace throughtime::TT_ISA
