// The register tile that serves every matrix product: sums[m][v] += sum_k rows[m][k] * packed[k][v].
// `packed` is in tile order, (K, vectors, lanes). Every sum runs over k in one order that depends on K alone, so a row's result
// does not depend on the other rows. Long sums are cut into blocks, each started from zero: the error grows with the block's
// length plus the number of blocks, not with their product.
#pragma once

#include "vec.hpp"

namespace throughtime::TT_ISA {

constexpr int64_t sum_block = 64;

// sums += rows[:, k] packed[k, :]. The shorter side stays in registers and the longer one streams past, one at a time: 6 x 2
// fits 12 sums, 2 weights and 1 broadcast in 16 registers. The compiler keeps to the order of these loops.
template <class S, class V, int rows, int vectors>
TT_INLINE void outer_product(const S* const (&row)[rows], const S* packed, int64_t k, V (&sums)[rows][vectors]) {
  const S* weights = packed + k * (vectors * lanes<S>);
  if constexpr (rows > vectors) {
    V weight[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) weight[v] = load<V>(weights + v * lanes<S>);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      const V x = splat<V>(row[m][k]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[m][v] += weight[v] * x;
    }
  } else {
    V x[rows];
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) x[m] = splat<V>(row[m][k]);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      const V weight = load<V>(weights + v * lanes<S>);
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) sums[m][v] += weight * x[m];
    }
  }
}

// Keeps `ways` independent sums if rows * vectors alone would leave the multipliers waiting (latency 4, two per cycle).
template <int ways, class V, class S, int rows, int vectors>
TT_INLINE void tile(int64_t K, const S* const (&row)[rows], const S* packed, V (&sums)[rows][vectors]) {
  for (int64_t begin = 0; begin < K; begin += sum_block * ways) {
    const int64_t end = begin + sum_block * ways < K ? begin + sum_block * ways : K;
    V part[ways][rows][vectors] = {};
    int64_t k = begin;
    for (; k + ways <= end; k += ways)
#pragma GCC unroll 8
      for (int way = 0; way < ways; ++way) outer_product<S>(row, packed, k + way, part[way]);
    for (; k < end; ++k) outer_product<S>(row, packed, k, part[0]);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 8
        for (int way = 1; way < ways; ++way) part[0][m][v] += part[way][m][v];
        sums[m][v] += part[0][m][v];
      }
  }
}

template <int n>
struct Count {
  static constexpr int value = n;
};

// Calls body(Count<n>) for a run-time n in 1..most, so that a tile's row count is a compile-time constant.
template <int most, class Body>
TT_INLINE void with_count(int n, const Body& body) {
  if constexpr (most > 1) {
    if (n < most) return with_count<most - 1>(n, body);
  }
  body(Count<most>{});
}

// Cuts [begin, end) into groups of nearly equal size, at most `most`: body(first, size). This leaves no single row over, whose
// few sums would wait for the multipliers.
template <int most, class Body>
TT_INLINE void for_parts(int64_t begin, int64_t end, const Body& body) {
  for (int64_t groups = (end - begin + most - 1) / most; groups > 0; --groups) {
    const int size = int((end - begin + groups - 1) / groups);
    body(begin, size);
    begin += size;
  }
}

// The same, with the size as a constant: body(first, Count<size>).
template <int most, class Body>
TT_INLINE void for_groups(int64_t begin, int64_t end, const Body& body) {
  for_parts<most>(begin, end, [&](int64_t first, int size) __attribute__((always_inline)) {
    with_count<most>(size, [&](auto count) __attribute__((always_inline)) { body(first, count); });
  });
}

}  // namespace throughtime::TT_ISA
