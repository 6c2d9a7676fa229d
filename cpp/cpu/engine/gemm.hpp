// The loop around the tile, for every product: panel by panel, so that a panel stays in L1 while the rows stream past.
#pragma once

#include "../../kernels.hpp"
#include "../system/team.hpp"
#include "pack.hpp"
#include "tile.hpp"

namespace throughtime::TT_ISA {

// Height and width of a register tile, and its independent sums per result.
template <int rows_, int vectors_, int ways_>
struct Shape {
  static constexpr int rows = rows_, vectors = vectors_, ways = ways_;
  static constexpr int64_t panels(int64_t of_vectors) { return ceil_div(of_vectors, vectors); }
};

// The tile of products outside the recurrence. 6 x 2 (6 x 4 with 32 registers) leaves room for the weights and one broadcast,
// and uses each loaded weight six times.
using ProductShape = Shape<6, registers == 32 ? 4 : 2, 1>;

// Receives a tile of results: rows first..first + count - 1, sums (count, Shape::vectors) from vector q on. Type-erased, so
// that each tile is compiled once for all consumers.
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

// Called between the halves of a product; false: the call must stop.
struct Ready {
  const void* asked = nullptr;
  bool (*ask)(const void*) = [](const void*) { return true; };

  bool operator()() const { return ask(asked); }
};

template <class Question>
Ready when(const Question& question) {
  return {&question, [](const void* self) { return bool((*static_cast<const Question*>(self))()); }};
}

// The panels of a product. If the weights exceed the cache, the direction alternates from call to call, so that the panels read
// last are still cached.
struct Panels {
  int64_t begin, end;
  bool downwards = false;

  int64_t count() const { return end - begin; }
  int64_t at(int64_t i) const { return downwards ? end - 1 - i : begin + i; }
  Panels but_first() const { return downwards ? Panels{begin, end - 1, true} : Panels{begin + 1, end}; }
};

// Calls body(piece) for pieces of a range, with a poll before each; a range entry is `numbers` numbers. The first write to 8 MB
// of fresh memory can take 40 ms (a virtual machine).
template <class Body>
void in_pieces(Range range, int64_t numbers, Poll& poll, const Body& body) {
  constexpr int64_t most = 1 << 20;
  const int64_t size = numbers < most ? most / numbers : 1;
  for (Range piece{range.begin, range.begin}; piece.begin < range.end; piece.begin = piece.end) {
    piece.end = range.end - piece.begin < size ? range.end : piece.begin + size;
    if (!poll.goes_on((piece.end - piece.begin) * numbers * 16)) return;
    body(piece);
  }
}

// The state that a thread's products keep between calls: one unit if steps and chunks share an engine.
template <class Steps, class Chunks>
struct Units {
  explicit Units(const Poll& poll) : of_steps(poll), of_chunks(poll) {}
  typename Steps::Unit of_steps;
  typename Chunks::Unit of_chunks;
  typename Steps::Unit& steps() { return of_steps; }
  typename Chunks::Unit& chunks() { return of_chunks; }
  bool stopped() const { return of_steps.stopped(); }
};
template <class Engine>
struct Units<Engine, Engine> {
  explicit Units(const Poll& poll) : unit(poll) {}
  typename Engine::Unit unit;
  typename Engine::Unit& steps() { return unit; }
  typename Engine::Unit& chunks() { return unit; }
  bool stopped() const { return unit.stopped(); }
};

// The engine on vector registers; Amx in amx.hpp is the one on tiles.
template <class S>
class Fma {
 public:
  static constexpr bool copies_operands = false;  // whether left operands are copies, made by the code that computes them
  static constexpr bool overlaps = false;         // whether start_product may leave its last results to the next product
  // Panels of delta packed at a time; rows of a chunk if the weights are large.
  static constexpr int64_t panels_at_once = 1, long_chunk = 2048;
  using Weight = S;
  using RowBuffer = const S*;
  struct Rows {
    const S** row;
    void set(int64_t r, const S* from, int64_t) const { row[r] = from; }
  };
  struct Columns {
    S* data;
    int64_t stride;
    TT_INLINE void put(int64_t row, int64_t k, Vec<S> value) const { store(data + row * stride + k, value); }
  };
  using Unit = Poll;

  explicit Fma(const Host&) {}

  int64_t packed_size(int64_t K, int64_t vectors) const { return vectors * K * lanes<S>; }
  int64_t row_buffer_size(int64_t rows, int64_t) const { return rows; }
  Rows rows(RowBuffer* row_buffer, int64_t, int64_t) const { return {row_buffer}; }
  Columns columns(S* row_buffer, int64_t, int64_t K) const { return {row_buffer, columns_padded(K)}; }
  static int64_t columns_padded(int64_t K) { return ceil_div(K, lanes<S>) * lanes<S>; }
  Rows rows_of(const Columns& columns, RowBuffer* row_buffer, int64_t begin, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) row_buffer[i] = columns.data + (begin + i) * columns.stride;
    return {row_buffer};
  }

  template <int vectors>
  void pack_rows(const S* weight, int64_t K, Interleaved order, Range range, S* packed) const {
    TT_ISA::pack_rows<vectors>(weight, K, K, order, range, packed);
  }
  template <int vectors>
  void pack_columns(const S* weight, int64_t N, Interleaved order, Range range, S* packed) const {
    TT_ISA::pack_columns<vectors>(weight, N, N, order, range, packed);
  }

  // Computes initial + rows[row] @ packed for every row in `range` and panel in `panels`. `initial` (vectors, lanes) is a bias
  // in tile order, or null.
  template <class Shape>
  void product(int64_t K, const Rows& rows, Range range, const S* packed, Panels panels, const S* initial, Sink<S> sink,
               Unit& unit) const {
    using V = Vec<S>;
    constexpr int vectors = Shape::vectors;
    const int64_t products = K * (range.end - range.begin) * vectors * lanes<S>;
    for (int64_t i = 0; i < panels.count() && unit.goes_on(products); ++i) {
      const int64_t panel = panels.at(i);
      const S* weights = packed + panel * K * vectors * lanes<S>;
      for_groups<Shape::rows>(range.begin, range.end, [&](int64_t first, auto count) __attribute__((always_inline)) {
        constexpr int n = decltype(count)::value;
        const S* row[n];
        V sums[n][vectors];
        for (int m = 0; m < n; ++m) {
          row[m] = rows.row[first + m];
          for (int v = 0; v < vectors; ++v) sums[m][v] = initial ? load<V>(initial + (panel * vectors + v) * lanes<S>) : V{};
        }
        tile<Shape::ways>(K, row, weights, sums);
        sink.put(sink.taker, first, n, panel * vectors, sums[0]);
      });
    }
  }

  // The same row by row, each sum being that over the lower half of K plus that over the upper half. This thread has written
  // the part `own` of the left operand. If it contains a half, that half is summed before ready(), which waits for the other
  // one. False if the call must stop.
  template <class Shape>
  bool product_of_halves(int64_t K, const Rows& rows, Range range, const S* packed, Panels panels, const S* initial, Sink<S> sink,
                         Range own, const Ready& ready, Unit& unit) const {
    using V = Vec<S>;
    constexpr int vectors = Shape::vectors, row_buffer = 64;
    const int64_t middle = K / 2, products = K * (range.end - range.begin) * vectors * lanes<S>;
    const auto sum = [&](int64_t r, int64_t panel, bool upper, V(&sums)[1][vectors]) __attribute__((always_inline)) {
      const int64_t k = upper ? middle : 0;
      const S* const row[1] = {rows.row[r] + k};
      for (int v = 0; v < vectors; ++v)
        sums[0][v] = initial && !upper ? load<V>(initial + (panel * vectors + v) * lanes<S>) : V{};
      tile<Shape::ways>(upper ? K - middle : middle, row, packed + (panel * K + k) * vectors * lanes<S>, sums);
    };
    const bool upper = own.begin > 0, has_half = upper ? own.begin <= middle && own.end >= K : own.end >= middle && own.end < K;
    const bool ahead = K > 0 && has_half && range.end - range.begin == 1 && panels.count() * vectors <= row_buffer;
    V early[row_buffer];
    for (int64_t i = 0; ahead && i < panels.count(); ++i) {
      V sums[1][vectors];
      sum(range.begin, panels.at(i), upper, sums);
      for (int v = 0; v < vectors; ++v) early[i * vectors + v] = sums[0][v];
    }
    if (!ready()) return false;
    for (int64_t i = 0; i < panels.count(); ++i) {
      if (!unit.goes_on(products)) return false;
      for (int64_t r = range.begin; r < range.end; ++r) {
        V sums[1][vectors], others[1][vectors];
        sum(r, panels.at(i), ahead && !upper, sums);
        if (ahead)
          for (int v = 0; v < vectors; ++v) others[0][v] = early[i * vectors + v];
        else sum(r, panels.at(i), true, others);
        for (int v = 0; v < vectors; ++v) sums[0][v] += others[0][v];
        sink.put(sink.taker, r, 1, panels.at(i) * vectors, sums[0]);
      }
    }
    return true;
  }
};

}  // namespace throughtime::TT_ISA
