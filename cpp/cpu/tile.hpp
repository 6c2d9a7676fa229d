// The register tile that serves every matrix product: sums[m][v] += sum_k rows[m][k] * packed[k][v].
// `packed` is in tile order, (K, vectors, lanes). Every sum runs over k in one order that depends on K alone, so a row's result
// does not depend on the rows beside it. Long sums are cut into blocks, each from zero: the error grows with the
// block's length and the number of blocks, not with K (relative rms error of a product, K = 256: 2.9e-7 uncut).
#pragma once

#include "vec.hpp"

namespace throughtime::TT_ISA {

constexpr int64_t sum_block = 64;

// `ways` independent sums are kept where rows * vectors alone would leave the multipliers waiting (latency 4, two a cycle).
template <int ways, class V, class S, int rows, int vectors>
TT_INLINE void tile(int64_t K, const S* const (&row)[rows], const S* packed, V (&sums)[rows][vectors]) {
  for (int64_t begin = 0; begin < K; begin += sum_block * ways) {
    const int64_t end = begin + sum_block * ways < K ? begin + sum_block * ways : K;
    V part[ways][rows][vectors] = {};
    int64_t k = begin;
    const auto step = [&](int64_t at, V(&into)[rows][vectors]) __attribute__((always_inline)) {
      const S* weights = packed + at * (vectors * lanes<S>);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        const V weight = load<V>(weights + v * lanes<S>);
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) into[m][v] += weight * row[m][at];
      }
    };
    for (; k + ways <= end; k += ways)
#pragma GCC unroll 8
      for (int way = 0; way < ways; ++way) step(k + way, part[way]);
    for (; k < end; ++k) step(k, part[0]);
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

// Calls body(Count<n>) for a run-time n in 1..most, so that a tile's rows are a type.
template <int most, class Body>
TT_INLINE void with_count(int n, const Body& body) {
  if constexpr (most > 1) {
    if (n < most) return with_count<most - 1>(n, body);
  }
  body(Count<most>{});
}

// Cuts [begin, end) into groups of nearly equal size, none above `most`: body(first, Count<size>). No group of one row is left
// over, whose few sums would wait for the multipliers.
template <int most, class Body>
TT_INLINE void for_groups(int64_t begin, int64_t end, const Body& body) {
  for (int64_t groups = (end - begin + most - 1) / most; groups > 0; --groups) {
    const int size = int((end - begin + groups - 1) / groups);
    with_count<most>(size, [&](auto count) __attribute__((always_inline)) { body(begin, count); });
    begin += size;
  }
}

}  // namespace throughtime::TT_ISA
