// Attention within a band without storing the matrix of scores (Dao 2023, FlashAttention-2). z = 1 / sqrt(size),
// t - back <= s <= t + ahead:
//   e_ts = exp(z (q_t k_s - max_t)),  l_t = sum_s e_ts,  y_t = sum_s e_ts v_s / l_t,  g_t = dy_t / l_t,
//   c_ts = e_ts (g_t v_s - g_t y_t),  dv_s = sum_t e_ts g_t,  dk_s = z sum_t c_ts q_t,  dq_t = z sum_s c_ts k_s.
#pragma once

#include "../math.hpp"
#include "engine/gemm.hpp"
#include "system/team.hpp"

namespace throughtime::TT_ISA {

// The part of `a` within another range; if they are disjoint, an empty range at an end of the other.
TT_INLINE Range overlap(Range a, Range within) {
  const auto clip = [&](int64_t x) { return x < within.begin ? within.begin : x < within.end ? x : within.end; };
  const int64_t begin = clip(a.begin), end = clip(a.end);
  return {begin, begin < end ? end : begin};
}

TT_INLINE Range operator-(Range a, int64_t origin) { return {a.begin - origin, a.end - origin}; }

// One head of one sequence: which steps see each other, and the addresses of a step's numbers.
template <class S>
struct Head {
  const Attention<S>& p;
  int64_t b, feature, length;
  S *top, *sum;  // (T) each, within `saved`

  Head(const Attention<S>& p, int64_t index)
      : p(p),
        b(index / p.heads),
        feature(index % p.heads * p.size),
        length(p.lengths ? p.lengths[b] : p.T),
        top(p.saved + 2 * index * p.T),
        sum(top + p.T) {}

  template <class N>
  N* row(const View<N>& of, int64_t t) const {
    return of.data + t * of.time + b * of.batch + feature;
  }
  void clear(const View<S>& of, Range steps) const {
    for (int64_t t = steps.begin; t < steps.end; ++t) __builtin_memset(row(of, t), 0, size_t(p.size) * sizeof(S));
  }
  // The keys that any of these queries sees, and the queries that see any of these keys.
  Range keys(Range queries) const { return overlap({queries.begin - p.back, queries.end + p.ahead}, {0, length}); }
  Range queries(Range keys) const { return overlap({keys.begin - p.ahead, keys.end + p.back}, {0, length}); }
};

// Shared by forward and backward: tasks of `segment` steps of a head, cut into blocks; packing and products.
template <class S>
struct Blocks {
  using V = Vec<S>;
  static constexpr int W = lanes<S>, rows = ProductShape::rows, vectors = ProductShape::vectors, panel = vectors * W;
  static constexpr int64_t block = 64;     // keys, or queries, per block of scores: their packed operands fit L1
  static constexpr int64_t segment = 512;  // steps that packed operands serve; 256 costs 3 %, 1024 gains nothing
  static constexpr S lowest = sizeof(S) == sizeof(float) ? S(-__FLT_MAX__) : S(-__DBL_MAX__);
  static_assert(block % panel == 0 && segment % block == 0);

  const Attention<S>& p;
  Fma<S> engine;
  int64_t heads, tasks, width;  // heads of all sequences; `width`: features in whole panels
  S scale;

  Blocks(const Attention<S>& p, const Host& host)
      : p(p),
        engine(host),
        heads(p.B * p.heads),
        tasks(heads * ceil_div(p.T, segment)),
        width(ceil_div(p.size, panel) * panel),
        scale(S(1 / __builtin_sqrt(double(p.size)))) {}

  // Consecutive tasks belong to different heads, and the segments of a head follow in order.
  Head<S> head(int64_t task) const { return {p, task % heads}; }
  Range steps(int64_t task) const { return overlap({task / heads * segment, (task / heads + 1) * segment}, {0, p.T}); }
  static Range block_at(int64_t first, Range within) { return overlap({first, first + block}, within); }
  static int64_t first_block(Range steps) { return steps.begin / block * block; }

  // Pack `count` rows of a matrix in tile order, followed by zeros: as a product's outputs, (size, block), or as the terms of
  // its sums, (depth, width).
  void pack_outputs(const S* from, int64_t stride, int64_t count, S* to) const {
    pack_rows<vectors>(from, stride, p.size, Interleaved{1, count, W}, Range{0, block / W}, to);
  }
  void pack_terms(const S* from, int64_t stride, int64_t count, S* to) const {
    pack_columns<vectors>(from, stride, p.size, Interleaved{1, count, W}, Range{0, width / panel}, to);
  }

  // The left operand of a product, row by row.
  struct Left {
    const S* row[rows];
    int count;
  };

  Left left(const Head<S>& head, const View<const S>& of, Range steps) const {
    Left made{{}, int(steps.end - steps.begin)};
    for (int i = 0; i < made.count; ++i) made.row[i] = head.row(of, steps.begin + i);
    return made;
  }

  template <class Put>
  void product(Left& left, int64_t K, const S* packed, Panels panels, const Put& put) const {
    typename Fma<S>::Unit unit;
    engine.template product<ProductShape>(K, {left.row}, {0, left.count}, packed, panels, nullptr, sink<S>(put), unit);
  }

  // Sets to[i] = make(left[i] packed, i, column) in the panels that hold the columns `near`; to (count, block).
  template <class Make>
  void scores(Left left, const S* packed, Range near, S* to, const Make& make) const {
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t i = first; i < first + count; ++i, sums += vectors)
        for (int v = 0; v < vectors; ++v) store(to + i * block + (q + v) * W, make(sums[v], i, (q + v) * W));
    };
    product(left, p.size, packed, {near.begin / panel, ceil_div(near.end, panel)}, put);
  }

  // The result of pack_terms for `count` rows.
  struct Terms {
    const S* packed;
    int64_t count;
  };

  // to[i] += sum over j in `near` of from[i][j] terms[j], for `count` rows; from (count, block), to (count, width).
  void add(const S* from, int count, Range near, Terms terms, S* to) const {
    Left left{{}, count};
    for (int i = 0; i < count; ++i) left.row[i] = from + i * block + near.begin;
    const int64_t depth = ceil_div(terms.count, W) * W;
    for (int64_t column = 0; column < width; column += panel) {
      const auto put = [&](int64_t first, int number, int64_t, const V* sums) {
        for (int64_t i = first; i < first + number; ++i, sums += vectors)
          for (int v = 0; v < vectors; ++v) {
            S* at = to + i * width + column + v * W;
            store(at, load<V>(at) + sums[v]);
          }
      };
      product(left, near.end - near.begin, terms.packed + column * depth + near.begin * panel, {0, 1}, put);
    }
  }

  // Sets row[j] = value for j in `all`, which is whole vectors, but outside `seen`: selected, because those entries may be NaN.
  static void mask(S* row, Range all, Range seen, S value) {
    if (seen.begin <= all.begin && all.end <= seen.end) return;
    using Bits = typename Register<S>::bits;
    using Integer = decltype(Bits{}[0] + 0);
    Bits lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    for (int64_t j = all.begin; j < all.end; j += W) {
      const Bits at = lane + Integer(j), inside = (at >= Integer(seen.begin)) & (at < Integer(seen.end));
      store(row + j, inside ? load<V>(row + j) : splat<V>(value));
    }
  }

  // to = factor from, or to += factor from, for the features of one step.
  void write(const S* from, S factor, bool adds, S* to) const {
    for (int64_t e = 0; e < p.size; e += W) {
      const V value = load<V>(from + e) * factor;
      store_some(to + e, adds ? load_some<V>(to + e, p.size - e) + value : value, p.size - e);
    }
  }
};

// Hands out the tasks, in order, to free threads. A task's result does not depend on its thread.
template <class Loop>
void perform_all(Loop& loop, const Host& host) {
  const auto work = [](void* self, int thread) {
    const FlushSubnormals flush;
    Loop& loop = *static_cast<Loop*>(self);
    for (;;) {
      const int64_t task = __atomic_fetch_add(&loop.next, 1, __ATOMIC_RELAXED);
      if (task >= loop.blocks.tasks || loop.team.interrupted(thread)) return;
      loop.perform(task, thread);
    }
  };
  host.run(host.context, work, &loop);
}

// A task is a segment of queries. Keys stream past block by block, and a few queries at a time are multiplied with them.
template <class S>
struct AttentionForwardLoop {
  using Parts = Blocks<S>;
  using V = Vec<S>;

  // Buffers of one thread.
  struct Workspace {
    S *keys, *values;  // packed: (size, block) and (block, width)
    S* scores;         // (rows, block)
    S *output, *sums;  // (segment, width), not divided by the sum yet; (segment, lanes)
  };

  const AttentionForward<S>& p;
  Team team;
  Parts blocks;
  Workspace* workspaces;
  int64_t next = 0;

  AttentionForwardLoop(const AttentionForward<S>& p, const Host& host)
      : p(p), team(host), blocks(p, host), workspaces(scratch<Workspace>(host, host.threads)) {
    const auto take = [&host](int64_t rows, int64_t columns) { return scratch<S>(host, rows * columns); };
    for (int i = 0; i < host.threads; ++i)
      workspaces[i] = {take(p.size, Parts::block), take(Parts::block, blocks.width), take(Parts::rows, Parts::block),
                       take(Parts::segment, blocks.width), take(Parts::segment, Parts::W)};
  }

  static void run(const AttentionForward<S>& p, const Host& host) {
    AttentionForwardLoop loop(p, host);
    perform_all(loop, host);
  }

  void perform(int64_t task, int thread) {
    const Workspace& my = workspaces[thread];
    const Head<S> head = blocks.head(task);
    const Range steps = blocks.steps(task), queries = overlap({0, head.length}, steps);
    head.clear(p.output, {queries.end, steps.end});
    if (queries.begin == queries.end) return;
    start(my, head, queries);
    const Range seen = head.keys(queries);
    for (int64_t first = Parts::first_block(seen); first < seen.end; first += Parts::block) {
      if (team.interrupted(thread)) return;
      const Range keys = Parts::block_at(first, {0, head.length}), near = overlap(head.queries(keys), queries);
      blocks.pack_outputs(head.row(p.k, first), p.k.time, keys.end - first, my.keys);
      blocks.pack_terms(head.row(p.v, first), p.v.time, keys.end - first, my.values);
      for_parts<Parts::rows>(near.begin, near.end,
                             [&](int64_t t, int count) { meet(my, head, {t, t + count}, t - queries.begin, keys); });
    }
    finish(my, head, queries);
  }

 private:
  void start(const Workspace& my, const Head<S>& head, Range queries) const {
    const size_t count = size_t(queries.end - queries.begin);
    for (int64_t t = queries.begin; t < queries.end; ++t) head.top[t] = Parts::lowest;
    __builtin_memset(my.output, 0, count * size_t(blocks.width) * sizeof(S));
    __builtin_memset(my.sums, 0, count * Parts::W * sizeof(S));
  }

  // Adds one block of keys to a few queries, which are `offset` steps into the segment.
  void meet(const Workspace& my, const Head<S>& head, Range queries, int64_t offset, Range keys) const {
    S *output = my.output + offset * blocks.width, *sums = my.sums + offset * Parts::W;
    const Range near = overlap(head.keys(queries), keys) - keys.begin;
    const Range whole{near.begin / Parts::W * Parts::W, ceil_div(near.end, Parts::W) * Parts::W};
    const auto left = blocks.left(head, p.q, queries);
    blocks.scores(left, my.keys, near, my.scores, [](V sum, int64_t, int64_t) { return sum; });
    S* top = head.top + queries.begin;
    for (int i = 0; i < left.count; ++i) {
      const int64_t t = queries.begin + i;
      S* scores = my.scores + i * Parts::block;
      Parts::mask(scores, whole, overlap(head.keys({t, t + 1}), keys) - keys.begin, -__builtin_inff());
      raise(top[i], scores, whole, sums + i * Parts::W, output + i * blocks.width);
    }
    for (int i = 0; i < left.count; ++i) exponentials(top[i], my.scores + i * Parts::block, whole, sums + i * Parts::W);
    blocks.add(my.scores, left.count, near, {my.values, keys.end - keys.begin}, output);
  }

  // If a score exceeds all before it, the running sums are rescaled (online softmax).
  void raise(S& top, const S* scores, Range near, S* sum, S* output) const {
    V largest = splat<V>(top);
    for (int64_t j = near.begin; j < near.end; j += Parts::W) {
      const V score = load<V>(scores + j);
      largest = largest < score ? score : largest;
    }
    const S found = largest_lane(largest);
    if (!(found > top)) return;
    const V shrink = exp(splat<V>((top - found) * blocks.scale));
    for (int64_t e = 0; e < blocks.width; e += Parts::W) store(output + e, load<V>(output + e) * shrink);
    store(sum, load<V>(sum) * shrink);
    top = found;
  }

  // Replaces scores by exponentials, and sums these.
  void exponentials(S top, S* scores, Range near, S* sum) const {
    V total = load<V>(sum);
    for (int64_t j = near.begin; j < near.end; j += Parts::W) {
      const V e = exp((load<V>(scores + j) - top) * blocks.scale);
      store(scores + j, e);
      total += e;
    }
    store(sum, total);
  }

  void finish(const Workspace& my, const Head<S>& head, Range queries) const {
    for (int64_t t = queries.begin; t < queries.end; ++t) {
      head.sum[t] = sum_lanes(load<V>(my.sums + (t - queries.begin) * Parts::W));
      blocks.write(my.output + (t - queries.begin) * blocks.width, 1 / head.sum[t], false, head.row(p.output, t));
    }
  }
};

// A task is a segment of keys. Queries stream past block by block. The segment's part of a block's dq is added after those of
// all earlier segments, on whichever thread.
template <class S>
struct AttentionBackwardLoop {
  using Parts = Blocks<S>;
  using V = Vec<S>;

  // Buffers of one thread. Per block of queries: q and g packed both ways, g, max and g y, dq. Per segment: k packed, dk and
  // dv. Per pair of these: e and c, (keys, queries), and c transposed.
  struct Workspace {
    S *q_outputs, *q_terms, *g_outputs, *g_terms, *g, *top, *dot, *dq;
    S *k_terms, *dk, *dv;
    S *e, *c, *transposed;
  };

  const AttentionBackward<S>& p;
  Team team;
  Parts blocks;
  Workspace* workspaces;
  int64_t* done;  // of each task: the gradients of queries before this one include its part
  int64_t next = 0;

  AttentionBackwardLoop(const AttentionBackward<S>& p, const Host& host)
      : p(p),
        team(host),
        blocks(p, host),
        workspaces(scratch<Workspace>(host, host.threads)),
        done(scratch<int64_t>(host, blocks.tasks)) {
    __builtin_memset(done, 0, size_t(blocks.tasks) * sizeof(int64_t));
    const auto take = [&host](int64_t rows, int64_t columns) { return scratch<S>(host, rows * columns); };
    constexpr int64_t n = Parts::block, m = Parts::segment;
    const int64_t width = blocks.width;
    for (int i = 0; i < host.threads; ++i)
      workspaces[i] = {take(p.size, n), take(n, width), take(p.size, n), take(n, width), take(n, width), take(1, n), take(1, n),
                       take(n, width),  take(m, width), take(m, width),  take(m, width), take(n, n),     take(n, n), take(n, n)};
  }

  static void run(const AttentionBackward<S>& p, const Host& host) {
    AttentionBackwardLoop loop(p, host);
    perform_all(loop, host);
  }

  void perform(int64_t task, int thread) {
    const Head<S> head = blocks.head(task);
    const Range steps = blocks.steps(task), keys = overlap({0, head.length}, steps), padding{keys.end, steps.end};
    head.clear(p.d_q, padding);
    head.clear(p.d_k, padding);
    head.clear(p.d_v, padding);
    if (keys.begin < keys.end && !sweep(head, keys, task, thread)) return;
    __atomic_store_n(&done[task], p.T, __ATOMIC_RELEASE);
  }

 private:
  // False if the call must stop.
  bool sweep(const Head<S>& head, Range keys, int64_t task, int thread) {
    const Workspace& my = workspaces[thread];
    start(my, head, keys);
    const Range seen = head.queries(keys);
    for (int64_t first = Parts::first_block(seen); first < seen.end; first += Parts::block) {
      if (team.interrupted(thread)) return false;
      const Range queries = Parts::block_at(first, {0, head.length});
      prepare(my, head, queries);
      for (int64_t s = keys.begin; s < keys.end; s += Parts::block)
        meet(my, head, Parts::block_at(s, keys), s - keys.begin, queries);
      const bool adds = head.keys(queries).begin < keys.begin;  // an earlier segment also adds to these
      if (adds && !team.wait_for(done[task - blocks.heads], queries.end)) return false;
      for (int64_t t = queries.begin; t < queries.end; ++t)
        blocks.write(my.dq + (t - first) * blocks.width, blocks.scale, adds, head.row(p.d_q, t));
      __atomic_store_n(&done[task], queries.end, __ATOMIC_RELEASE);
    }
    for (int64_t s = keys.begin; s < keys.end; ++s) {
      blocks.write(my.dk + (s - keys.begin) * blocks.width, blocks.scale, false, head.row(p.d_k, s));
      blocks.write(my.dv + (s - keys.begin) * blocks.width, 1, false, head.row(p.d_v, s));
    }
    return true;
  }

  void start(const Workspace& my, const Head<S>& head, Range keys) const {
    const size_t bytes = size_t((keys.end - keys.begin) * blocks.width) * sizeof(S);
    __builtin_memset(my.dk, 0, bytes);
    __builtin_memset(my.dv, 0, bytes);
    for (int64_t s = keys.begin; s < keys.end; s += Parts::block) {
      const Range own = Parts::block_at(s, keys);
      blocks.pack_terms(head.row(p.k, s), p.k.time, own.end - s, my.k_terms + (s - keys.begin) * blocks.width);
    }
  }

  void prepare(const Workspace& my, const Head<S>& head, Range queries) const {
    const int64_t count = queries.end - queries.begin, width = blocks.width;
    for (int64_t i = 0; i < Parts::block; ++i) my.top[i] = my.dot[i] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = queries.begin + i;
      const S *y = head.row(p.output, t), *dy = head.row(p.d_output, t), inverse = 1 / head.sum[t];
      V dot{};
      for (int64_t e = 0; e < width; e += Parts::W) {
        const V g = load_some<V>(dy + e, p.size - e) * inverse;
        dot += g * load_some<V>(y + e, p.size - e);
        store(my.g + i * width + e, g);
      }
      my.dot[i] = sum_lanes(dot);
      my.top[i] = head.top[t];
    }
    blocks.pack_outputs(head.row(p.q, queries.begin), p.q.time, count, my.q_outputs);
    blocks.pack_terms(head.row(p.q, queries.begin), p.q.time, count, my.q_terms);
    blocks.pack_outputs(my.g, width, count, my.g_outputs);
    blocks.pack_terms(my.g, width, count, my.g_terms);
    __builtin_memset(my.dq, 0, size_t(count * width) * sizeof(S));
  }

  // Multiplies one block of keys, `offset` steps into the segment, with one of queries.
  void meet(const Workspace& my, const Head<S>& head, Range keys, int64_t offset, Range queries) const {
    const Range near = overlap(head.keys(queries), keys);
    if (near.begin == near.end) return;
    const int64_t width = blocks.width, terms = queries.end - queries.begin;
    for_parts<Parts::rows>(near.begin, near.end, [&](int64_t s, int count) {
      const int64_t from = (s - keys.begin) * Parts::block, to = (offset + s - keys.begin) * width;
      const Range seen_by = overlap(head.queries({s, s + count}), queries) - queries.begin;
      weigh(my, head, {s, s + count}, queries, from);
      blocks.add(my.e + from, count, seen_by, {my.g_terms, terms}, my.dv + to);
      blocks.add(my.c + from, count, seen_by, {my.q_terms, terms}, my.dk + to);
    });
    transpose_scores(my, near - keys.begin);
    const Range seen_by = overlap(head.queries(near), queries);
    for_parts<Parts::rows>(seen_by.begin, seen_by.end, [&](int64_t t, int count) {
      const int64_t i = t - queries.begin;
      const Range seen = overlap(head.keys({t, t + count}), keys) - keys.begin;
      blocks.add(my.transposed + i * Parts::block, count, seen, {my.k_terms + offset * width, keys.end - keys.begin},
                 my.dq + i * width);
    });
  }

  // Computes e and c, from offset `from` on, of a few keys and all queries of the block: zero for keys that a query does not
  // see.
  void weigh(const Workspace& my, const Head<S>& head, Range keys, Range queries, int64_t from) const {
    S *e = my.e + from, *c = my.c + from;
    const Range near = overlap(head.queries(keys), queries) - queries.begin;
    const auto mask = [&](S* row) {
      for (int64_t s = keys.begin; s < keys.end; ++s, row += Parts::block)
        Parts::mask(row, {0, Parts::block}, overlap(head.queries({s, s + 1}), queries) - queries.begin, 0);
    };
    blocks.scores(blocks.left(head, p.k, keys), my.q_outputs, near, e,
                  [&](V sum, int64_t, int64_t t) { return exp((sum - load<V>(my.top + t)) * blocks.scale); });
    mask(e);
    blocks.scores(blocks.left(head, p.v, keys), my.g_outputs, near, c,
                  [&](V sum, int64_t i, int64_t t) { return load<V>(e + i * Parts::block + t) * (sum - load<V>(my.dot + t)); });
    mask(c);
  }

  // Transposes c into (queries, keys).
  void transpose_scores(const Workspace& my, Range keys) const {
    for (int64_t s = keys.begin / Parts::W * Parts::W; s < keys.end; s += Parts::W) {
      const S* row[Parts::W];
      for (int64_t i = s; i < s + Parts::W; ++i) row[i - s] = i >= keys.begin && i < keys.end ? my.c + i * Parts::block : nullptr;
      transpose_rows(row, Parts::W, Parts::block,
                     [&](int64_t t, V value) { store(my.transposed + t * Parts::block + s, value); });
    }
  }
};

}  // namespace throughtime::TT_ISA
