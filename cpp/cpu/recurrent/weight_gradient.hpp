// The delta of one of a step's products (W_ih x, W_hh h or the second one), kept as rows, and the gradient of that product's
// weight. A product that sums over these rows packs them panel by panel. Sums have two levels: each chunk starts from zero, and
// chunks are added in float64.
#pragma once

#include "operand.hpp"

namespace throughtime::TT_ISA {

template <class S, class Tiles>
class WeightGradient {
  using V = Vec<S>;
  using Engine = typename Tiles::ChunkEngine;
  using Product = typename Tiles::Product;
  using Weight = typename Engine::Weight;
  static constexpr int W = lanes<S>;

 public:
  Interleaved order;
  int64_t features;
  Operand<S, Engine> delta;  // (slots, row_size)

  // The rows of delta form a ring of `number` slots. `shared`: another object that already holds the same delta.
  void prepare(const Engine& engine, const Host& host, Interleaved gates, int64_t of_features, int64_t number,
               int64_t padded_rows, bool readable, const WeightGradient* shared = nullptr) {
    order = gates, features = of_features, slots = number, shares = shared;
    if (shared) {
      delta = shared->delta, bias = shared->bias;
    } else {
      delta = {engine, host, slots, row_size(), readable};
      bias = scratch<double>(host, row_size());
    }
    const int64_t size = Engine::copies_operands ? engine.row_buffer_size(features, padded_rows) : features * padded_rows;
    columns = engine.columns(scratch<Weight>(host, size), features, padded_rows);
    sums = scratch<double>(host, sums_size());
  }

  int64_t row_size() const { return order.vectors() * W; }
  bool has_own_delta() const { return !shares; }

  void clear(int parts, int index, Poll& poll) const {
    const auto clear = [&poll](double* data, Range range) {
      in_pieces(range, 1, poll, [data](Range piece) {
        __builtin_memset(data + piece.begin, 0, size_t(piece.end - piece.begin) * sizeof(double));
      });
    };
    clear(sums, share(sums_size(), parts, index));
    if (!shares) clear(bias, share(row_size(), parts, index));
  }

  // Transposes the chunk's x, h or m; null rows are zeros.
  void transpose(const S* const* rows, Range range) const {
    for (int64_t r = range.begin; r < range.end; r += W) {
      for (int64_t next = r + W; next < range.end && next < r + 2 * W; ++next)
        for (int64_t k = 0; rows[next] && k < features; k += 64 / int64_t(sizeof(S))) __builtin_prefetch(rows[next] + k, 0, 2);
      transpose_rows(rows + r, range.end - r, features, [this, r](int64_t k, V value) { columns.put(k, r, value); });
    }
  }

  // Packs a panel of `height` rows of delta, from slot `first` on, wrapping around. Their sum is added to the bias's gradient.
  void pack(const Engine& engine, int64_t first, int64_t height, int64_t panel, Weight* packed) const {
    const int64_t wrap = slots - first, q = panel * Product::vectors;
    const int count = int(order.vectors() - q < Product::vectors ? order.vectors() - q : Product::vectors);
    const auto row = [=](int64_t r) { return r < wrap ? first + r : r - wrap; };
    double total[Product::vectors * W] = {};
    if constexpr (Engine::copies_operands) {
      // First terms have 8 bits each, so their sum over a block is exact unless their exponents differ by more than 11.
      V firsts[Product::vectors] = {}, others[Product::vectors] = {};
      const auto add = [&](int64_t v, int term, auto pairs) { (term == 0 ? firsts : others)[v] += sum_of_pairs(pairs); };
      const auto close_block = [&] {
        for (int v = 0; v < count; ++v) {
          add_to(total + v * W, firsts[v]);
          add_to(total + v * W, others[v]);
          firsts[v] = others[v] = V{};
        }
      };
      engine.pack_split(delta.split(), height, q, count, packed, row, add, close_block);
    } else {
      for (int64_t r = 0; r < height; ++r) {
        const S* from = delta.row(row(r)) + q * W;
        for (int v = 0; v < count; ++v) {
          const V value = load<V>(from + v * W);
          store(packed + (r * Product::vectors + v) * W, value);
          add_to(total + v * W, value);
        }
      }
    }
    for (int i = 0; i < count * W; ++i) bias[q * W + i] += total[i];
  }

  // Adds the transposed operand times the packed panels; `row_buffer` has room for `row_buffer_rows` rows.
  void add_gradient(const Engine& engine, int64_t height, Range panels, const Weight* packed, const S** row_buffer,
                    int64_t row_buffer_rows, typename Engine::Unit& unit) const {
    const int64_t q = panels.begin * Product::vectors;
    for (int64_t begin = 0; begin < features; begin += row_buffer_rows) {
      const int64_t count = features - begin < row_buffer_rows ? features - begin : row_buffer_rows;
      const auto rows = engine.rows_of(columns, row_buffer, begin, count);
      const auto put = [&](int64_t first, int number, int64_t to, const V* of_chunk) {
        for (int64_t i = begin + first; i < begin + first + number; ++i, of_chunk += Product::vectors)
          for (int v = 0; v < Product::vectors && q + to + v < order.vectors(); ++v) add_to(sum_of(i, q + to + v), of_chunk[v]);
      };
      const S* none = nullptr;
      engine.template product<Product>(height, rows, {0, count}, packed, {0, panels.end - panels.begin}, none, sink<S>(put),
                                       unit);
    }
  }

  // Stores a thread's part of the gradients in the caller's layout; `d_bias` may be null.
  void unpack(int parts, int index, S* d_weight, S* d_bias, Poll& poll) const {
    in_pieces(share(order.vectors(), parts, index), features * W, poll, [&](Range own) {
      for (int64_t q = own.begin; q < own.end; ++q) {
        unpack_rows(q, d_weight);
        for (int lane = 0; d_bias && lane < W; ++lane)
          if (const int64_t row = order.row(q, lane); row >= 0) d_bias[row] = S(bias[q * W + lane]);
      }
    });
  }

 private:
  int64_t sums_size() const { return Product::panels(order.vectors()) * features * Product::vectors * W; }
  // The sums of vector q of row i.
  double* sum_of(int64_t i, int64_t q) const {
    return sums + ((q / Product::vectors * features + i) * Product::vectors + q % Product::vectors) * W;
  }

  // Transposes columns of the sums into rows of the gradient, a square at a time.
  void unpack_rows(int64_t q, S* d_weight) const {
    for (int64_t i = 0; i < features; i += W) {
      const int64_t count = features - i < W ? features - i : W;
      V block[W] = {};
      for (int k = 0; k < count; ++k)
        for (int lane = 0; lane < W; ++lane) block[k][lane] = S(sum_of(i + k, q)[lane]);
      TT_ISA::transpose(block);
      for (int lane = 0; lane < W; ++lane)
        if (const int64_t row = order.row(q, lane); row >= 0) store_some(d_weight + row * features + i, block[lane], count);
    }
  }

  typename Engine::Columns columns;  // (features, padded rows)
  double* sums;  // (panels, features, Product::vectors, lanes): weight gradient so far, transposed, gates interleaved
  double* bias;  // (row_size): its gradient so far
  int64_t slots;
  const WeightGradient* shares;
};

}  // namespace throughtime::TT_ISA
