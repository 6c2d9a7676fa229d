// Linear layers: y = x W^T + b for N rows; backward dx = dy W, dW = dy^T x, db = sum dy. One run of all threads packs the
// operands, another one multiplies them. Free threads claim tasks; the cut of a product into tasks changes no bit of it. dW
// sums chunks of rows, each from zero, and adds these in float64.
#pragma once

#include "../engine/choice.hpp"
#include "rows.hpp"

namespace throughtime::TT_ISA {

// Runs the tasks of one call, on one thread if the work is small.
template <class Unit>
class Tasks {
 public:
  // One thread does 2^20 multiplications in 25 us; two runs of two threads cost 9 us (Zen 3, floats).
  Tasks(const Host& host, int64_t products) : threads(products < 1 << 20 ? 1 : host.threads), host(host) {}

  // Calls body(task, thread, unit) for every task; false if the call must stop.
  template <class Body>
  bool perform(int64_t count, const Body& body) const {
    RowBlocks tasks(count, 1, threads == 1, host);
    bool goes_on = true;
    tasks.run([&](int thread) {
      Unit unit(tasks.poll(thread));
      const bool own = tasks.for_each(thread, [&](int64_t task, Range) { body(task, thread, unit); });
      if (thread == 0) goes_on = own;
    });
    return goes_on;
  }

  const int threads;

 private:
  const Host& host;
};

// Whether `task` is one of the first `count`; if not, subtracts `count`. So one list holds tasks of several kinds.
TT_INLINE bool is_within(int64_t& task, int64_t count) {
  if (task < count) return true;
  task -= count;
  return false;
}

// The panels that a task packs: a few cache lines of each row.
template <class Product>
constexpr int64_t packed_together = Product::vectors < 8 ? 8 / Product::vectors : 1;
template <class Product>
int64_t pack_groups(int64_t panels) {
  return ceil_div(panels, packed_together<Product>);
}
template <class Product>
Range pack_group(int64_t task, int64_t panels) {
  const int64_t begin = task * packed_together<Product>, end = begin + packed_together<Product>;
  return {begin, end < panels ? end : panels};
}

// How a product of `rows` rows of K numbers with some panels is cut into tasks: a block of rows and a group of panels each.
struct Cut {
  int64_t rows, height, blocks, panels, groups;

  // Blocks are at most four tiles high: higher ones write more rows at a time, whose cache lines evict each other if rows are a
  // power of two apart (32 x 1024 x 1024 on Zen 3: dW in 2.7 ms with 96 rows, 1.4 with 24). If blocks are few, every thread
  // gets the same number, but none is below two tiles: then threads share the panels instead. `quantum` rows fill a tile.
  Cut(int threads, int64_t rows, int64_t panels, int64_t quantum) : rows(rows), panels(panels) {
    const int64_t most = ceil_div(rows, 2 * quantum);
    blocks = ceil_div(rows, 4 * quantum);
    if (blocks < 4 * threads) blocks = ceil_div(blocks, threads) * threads;
    if (blocks > most) blocks = most;
    height = ceil_div(ceil_div(rows, blocks), quantum) * quantum;
    blocks = ceil_div(rows, height);
    groups = blocks < threads ? ceil_div(threads, blocks) : 1;
    if (groups > panels) groups = panels;
  }

  int64_t tasks() const { return blocks * groups; }
  Range rows_of(int64_t task) const {
    const int64_t begin = task / groups * height, end = begin + height;
    return {begin, end < rows ? end : rows};
  }
  Range panels_of(int64_t task) const { return share(panels, int(groups), int(task % groups)); }
};

// Computes to (N, columns) = from (N, K) times packed panels + a bias in tile order. A task is a block of rows and some panels.
template <class S, class Tiles>
class RowProduct {
  using V = Vec<S>;
  using Engine = typename Tiles::ChunkEngine;
  using Product = typename Tiles::Product;
  static constexpr int W = lanes<S>;

 public:
  using Unit = typename Engine::Unit;

  // A panel is packed with `depth` rows, K or more.
  RowProduct(const Host& host, int threads, const S* from, S* to, int64_t N, int64_t K, int64_t depth, int64_t columns)
      : panels(Product::panels(ceil_div(columns, W))),
        engine(host),
        from(from),
        to(to),
        K(K),
        columns(columns),
        panel_size(engine.packed_size(depth, Product::vectors)),
        cut(threads, N, panels, Product::rows),
        row_buffer_size(engine.row_buffer_size(cut.height, K)) {
    packed = scratch<typename Engine::Weight>(host, panels * panel_size);
    row_buffer = scratch<typename Engine::RowBuffer>(host, threads * row_buffer_size);
  }

  int64_t tasks() const { return cut.tasks(); }

  void multiply(int64_t task, int thread, const S* bias, Unit& unit) const {
    const Range rows = cut.rows_of(task), own = cut.panels_of(task);
    const int64_t count = rows.end - rows.begin;
    const auto left = engine.rows(row_buffer + thread * row_buffer_size, count, K);
    for (int64_t r = 0; r < count; ++r) left.set(r, from + (rows.begin + r) * K, K);
    // One call takes several panels only if these are packed with depth K.
    for (int64_t panel = own.begin, next; panel < own.end; panel = next) {
      next = panel + Engine::panels_at_once < own.end ? panel + Engine::panels_at_once : own.end;
      const auto put = [&](int64_t first, int number, int64_t q, const V* sums) {
        for (int64_t r = rows.begin + first; r < rows.begin + first + number; ++r, sums += Product::vectors)
          for (int v = 0; v < Product::vectors; ++v)
            if (const int64_t j = (panel * Product::vectors + q + v) * W; j < columns)
              store_some(to + r * columns + j, sums[v], columns - j);
      };
      engine.template product<Product>(K, left, {0, count}, packed + panel * panel_size, {0, next - panel},
                                       bias ? bias + panel * Product::vectors * W : nullptr, sink<S>(put), unit);
    }
  }

  const int64_t panels;
  const Engine engine;
  typename Engine::Weight* packed;

 private:
  const S* from;
  S* to;
  const int64_t K, columns, panel_size;
  const Cut cut;
  const int64_t row_buffer_size;
  typename Engine::RowBuffer* row_buffer;
};

// Computes d_weight (O, I) = dy^T x, and d_bias. Rows come in rounds of some chunks. For these, dy is transposed (and summed in
// float64 on the way) and x is packed; then each task adds all chunks of the round to a rectangle of d_weight.
template <class S, class Tiles>
class WeightProduct {
  using V = Vec<S>;
  using Engine = typename Tiles::ChunkEngine;
  using Product = typename Tiles::Product;
  using Weight = typename Engine::Weight;
  static constexpr int W = lanes<S>;
  // Rows per chunk, and rows that a task transposes. Rows of dy^T a power of two apart would map to few cache sets.
  static constexpr int64_t most = 480, strip = 96;

 public:
  using Unit = typename Engine::Unit;

  WeightProduct(const Host& host, int threads, const LinearBackward<S>& p)
      : engine(host),
        p(p),
        panels(Product::panels(ceil_div(p.I, W))),
        width(panels * Product::vectors * W),
        chunk(p.N < most ? ceil_div(p.N, strip) * strip : most),
        chunks(ceil_div(p.N, chunk)),
        cut(threads, p.O, panels, Product::rows) {
    const int64_t fit = (int64_t(1) << 19) / (chunk * (p.O + width)) + 1, padded = Engine::columns_padded(chunk);
    round = chunks < fit ? chunks : fit;
    column_size = Engine::copies_operands ? engine.row_buffer_size(p.O, padded) : p.O * padded;
    packed_size = panels * engine.packed_size(padded, Product::vectors);
    columns = scratch<Weight>(host, round * column_size);
    packed = scratch<Weight>(host, round * packed_size);
    rows = scratch<const S*>(host, threads * p.O);
    if (chunks > 1) sums = scratch<double>(host, p.O * width);
    if (p.d_bias) bias = scratch<double>(host, strips() * bias_size());
  }

  int64_t rounds() const { return ceil_div(chunks, round); }
  int64_t packing_tasks() const { return round * (chunk / strip + pack_groups<Product>(panels)); }
  int64_t tasks() const { return cut.tasks(); }
  int64_t bias_tasks() const { return p.d_bias ? ceil_div(p.O, bias_columns) : 0; }

  void pack(int64_t task, int64_t of_round) const {
    int64_t part = task / round;
    const int64_t place = task % round, index = of_round * round + place;
    if (index >= chunks) return;
    if (!is_within(part, pack_groups<Product>(panels))) return transpose(place, index, part * strip);
    engine.template pack_columns<Product::vectors>(p.x + index * chunk * p.I, p.I, {1, height(index), W},
                                                   pack_group<Product>(part, panels), packed + place * packed_size);
  }

  void multiply(int64_t task, int thread, int64_t of_round, Unit& unit) const {
    const Range own = cut.rows_of(task), own_panels = cut.panels_of(task);
    for (int64_t place = 0, index = of_round * round; place < round && index < chunks; ++place, ++index) {
      const auto left = engine.rows_of(columns_at(place, index), rows + thread * p.O, own.begin, own.end - own.begin);
      const auto put = [&](int64_t first, int count, int64_t q, const V* of_chunk) {
        for (int64_t o = own.begin + first; o < own.begin + first + count; ++o, of_chunk += Product::vectors)
          for (int v = 0; v < Product::vectors && (q + v) * W < p.I; ++v) add(index, o, (q + v) * W, of_chunk[v]);
      };
      const S* none = nullptr;
      engine.template product<Product>(Engine::columns_padded(height(index)), left, {0, own.end - own.begin},
                                       packed + place * packed_size, {own_panels.begin, own_panels.end}, none, sink<S>(put),
                                       unit);
    }
  }

  // Sums all strips, when the last round is packed.
  void sum_bias(int64_t task) const {
    const int64_t begin = task * bias_columns, end = begin + bias_columns < p.O ? begin + bias_columns : p.O;
    double total[bias_columns] = {};
    for (int64_t k = 0; k < strips(); ++k)
      for (int64_t o = begin; o < end; ++o) total[o - begin] += bias[k * bias_size() + o];
    for (int64_t o = begin; o < end; ++o) p.d_bias[o] = S(total[o - begin]);
  }

 private:
  static constexpr int64_t bias_columns = 64;

  int64_t strips() const { return chunks * (chunk / strip); }
  int64_t bias_size() const { return ceil_div(p.O, W) * W; }
  int64_t height(int64_t index) const { return index + 1 < chunks ? chunk : p.N - index * chunk; }

  typename Engine::Columns columns_at(int64_t place, int64_t index) const {
    return engine.columns(columns + place * column_size, p.O, Engine::columns_padded(height(index)));
  }

  // Transposes rows of dy from `begin` on within the chunk, and zeros after its last one.
  void transpose(int64_t place, int64_t index, int64_t begin) const {
    const auto to = columns_at(place, index);
    const int64_t count = height(index), padded = Engine::columns_padded(count);
    const int64_t end = begin + strip < padded ? begin + strip : padded;
    constexpr int64_t near = 64;  // columns of a strip that stay in L1 until they are full
    for (int64_t first = 0; first < p.O; first += near) {
      const int64_t features = p.O - first < near ? p.O - first : near;
      const S* const dy = p.d_y + index * chunk * p.O + first;
      for (int64_t r = begin; r < end; r += W) {
        const S* from[W];
        for (int i = 0; i < W; ++i) from[i] = r + i < count ? dy + (r + i) * p.O : nullptr;
        transpose_rows(from, W, features, [&](int64_t o, V value) { to.put(first + o, r, value); });
      }
      if (p.d_bias) sum_strip(dy, {begin, end < count ? end : count}, features, bias_of(index, begin) + first);
    }
  }

  double* bias_of(int64_t index, int64_t begin) const { return bias + (index * (chunk / strip) + begin / strip) * bias_size(); }

  // Sums rows `own`, column by column.
  void sum_strip(const S* dy, Range own, int64_t features, double* to) const {
    for (int64_t o = 0; o < features; o += W) {
      double total[W] = {};
      for (int64_t r = own.begin; r < own.end; ++r) add_to(total, load_some<V>(dy + r * p.O + o, features - o));
      for (int lane = 0; lane < W; ++lane) to[o + lane] = total[lane];
    }
  }

  TT_INLINE void add(int64_t index, int64_t o, int64_t i, V value) const {
    S* const to = p.d_weight + o * p.I + i;
    if (chunks == 1) return store_some(to, value, p.I - i);
    double* const sum = sums + o * width + i;
    if (index == 0) __builtin_memset(sum, 0, W * sizeof(double));
    add_to(sum, value);
    if (index + 1 < chunks) return;
    for (int64_t lane = 0; lane < W && i + lane < p.I; ++lane) to[lane] = S(sum[lane]);
  }

  const Engine engine;
  const LinearBackward<S>& p;
  const int64_t panels, width;
  const int64_t chunk, chunks;  // rows of a chunk; chunks in all
  const Cut cut;
  int64_t round, column_size, packed_size;  // chunks per round; numbers in a chunk of dy and of x
  Weight *columns, *packed;                 // of each chunk of a round: dy (O, rows), x in tile order
  const S** rows;
  double* sums = nullptr;  // (O, width)
  double* bias = nullptr;  // (strips, O)
};

template <class S, class Tiles>
void linear_forward(const LinearForward<S>& p, const Host& host) {
  using Product = typename Tiles::Product;
  constexpr int W = lanes<S>;
  if (p.N == 0) return;
  const Tasks<typename Tiles::ChunkEngine::Unit> tasks(host, p.N * p.I * p.O);
  const RowProduct<S, Tiles> product(host, tasks.threads, p.x, p.y, p.N, p.I, p.I, p.O);
  const Interleaved order{1, p.O, W};
  S* bias = nullptr;
  if (p.bias) {
    bias = scratch<S>(host, product.panels * Product::vectors * W);
    pack_vector(p.bias, order, bias);
    __builtin_memset(bias + order.vectors() * W, 0, size_t(product.panels * Product::vectors - order.vectors()) * W * sizeof(S));
  }
  const bool goes_on = tasks.perform(product.panels, [&](int64_t panel, int, auto&) {
    product.engine.template pack_rows<Product::vectors>(
        p.weight, p.I, order, {panel * Product::vectors, (panel + 1) * Product::vectors}, product.packed);
  });
  if (goes_on)
    tasks.perform(product.tasks(), [&](int64_t task, int thread, auto& unit) { product.multiply(task, thread, bias, unit); });
}

// The gradients for no rows.
template <class S>
void clear_gradients(const LinearBackward<S>& p) {
  __builtin_memset(p.d_weight, 0, size_t(p.O * p.I) * sizeof(S));
  if (p.d_bias) __builtin_memset(p.d_bias, 0, size_t(p.O) * sizeof(S));
}

template <class S, class Tiles>
void linear_backward(const LinearBackward<S>& p, const Host& host) {
  using Product = typename Tiles::Product;
  constexpr int W = lanes<S>;
  if (p.N == 0) return clear_gradients(p);
  const Tasks<typename Tiles::ChunkEngine::Unit> tasks(host, 2 * p.N * p.I * p.O);
  const RowProduct<S, Tiles> inputs(host, tasks.threads, p.d_y, p.d_x, p.N, p.O, ceil_div(p.O, W) * W, p.I);
  const WeightProduct<S, Tiles> weights(host, tasks.threads, p);
  for (int64_t round = 0; round < weights.rounds(); ++round) {
    const int64_t first = round == 0, last = round + 1 == weights.rounds();
    const auto pack = [&](int64_t task, int, auto&) {
      if (is_within(task, weights.packing_tasks())) return weights.pack(task, round);
      inputs.engine.template pack_columns<Product::vectors>(p.weight, p.I, {1, p.O, W}, pack_group<Product>(task, inputs.panels),
                                                            inputs.packed);
    };
    const auto multiply = [&](int64_t task, int thread, auto& unit) {
      if (is_within(task, weights.tasks())) return weights.multiply(task, thread, round, unit);
      if (is_within(task, last * weights.bias_tasks())) return weights.sum_bias(task);
      inputs.multiply(task, thread, nullptr, unit);
    };
    if (!tasks.perform(first * pack_groups<Product>(inputs.panels) + weights.packing_tasks(), pack)) return;
    if (!tasks.perform(weights.tasks() + last * weights.bias_tasks() + first * inputs.tasks(), multiply)) return;
  }
}

}  // namespace throughtime::TT_ISA
