// The loop around the tile, for every product: panel by panel, so that a panel stays in L1 while the rows pass by.
#pragma once

#include "pack.hpp"
#include "tile.hpp"

namespace throughtime::TT_ISA {

// Height and width of a register tile, and its independent sums per result.
template <int rows_, int vectors_, int ways_>
struct Shape {
  static constexpr int rows = rows_, vectors = vectors_, ways = ways_;
};

// What lies outside the recurrence. 6 x 2 (6 x 4 with 32 registers) leaves room for the weights and one broadcast, and reuses
// each weight loaded six times.
using ProductShape = Shape<6, registers == 32 ? 4 : 2, 1>;
constexpr int product_vectors = ProductShape::vectors;

TT_INLINE int64_t product_panels(int64_t vectors) { return ceil_div(vectors, product_vectors); }

// Takes a tile of results: rows first..first + count - 1, sums (count, Shape::vectors) from vector q on. One type for every
// taker, so that the tiles are compiled once.
template <class S>
struct Sink {
  const void* taker;
  void (*put)(const void* taker, int64_t first, int count, int64_t q, const Vec<S>* sums);
};

template <class S, class Taker>
Sink<S> sink(const Taker& taker) {
  return {&taker, [](const void* self, int64_t first, int count, int64_t q, const Vec<S>* sums) {
            (*static_cast<const Taker*>(self))(first, count, q, sums);
          }};
}

// For every row in `range` and panel in `panels`: initial + rows[row] @ packed. `initial` (vectors, lanes) is a bias in tile
// order, or null.
template <class Shape, class S>
void product(int64_t K, const S* const* rows, Range range, const S* packed, Range panels, const S* initial, Sink<S> sink) {
  using V = Vec<S>;
  constexpr int vectors = Shape::vectors;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const S* weights = packed + panel * K * vectors * lanes<S>;
    for_groups<Shape::rows>(range.begin, range.end, [&](int64_t first, auto count) __attribute__((always_inline)) {
      constexpr int n = decltype(count)::value;
      const S* row[n];
      V sums[n][vectors];
      for (int m = 0; m < n; ++m) {
        row[m] = rows[first + m];
        for (int v = 0; v < vectors; ++v) sums[m][v] = initial ? load<V>(initial + (panel * vectors + v) * lanes<S>) : V{};
      }
      tile<Shape::ways>(K, row, weights, sums);
      sink.put(sink.taker, first, n, panel * vectors, sums[0]);
    });
  }
}

}  // namespace throughtime::TT_ISA
