// Backward of layer_norm.hpp: a few blocks on every multiprocessor, for as long as there are rows. Each walks over its own
// stretch of rows, and its threads keep their columns' parts of dweight and dbias in registers; a second kernel adds the blocks'
// parts. All sums have one order, which N, F and the number of multiprocessors decide.
//
// Rows to come are on their way into shared memory while one is worked at. A piece comes to the thread that asked for it, so that
// this needs no barrier. A stage is about 768 pieces of 16 bytes of each array on a multiprocessor, 36 KB, and all stages but the
// one that is worked at are in flight; 3.35 TB/s and a latency of 1 us want 25 KB of each of 132.
#include "launch.hpp"
#include "layer_norm_row.hpp"

#include <algorithm>

namespace throughtime::cuda {

namespace {

constexpr int small_rows_threads = 256, pieces_of_stage = 768, resident_threads = 512, most_stages = 4;
enum Incoming { d_normalised, sum, d_sum, most_incoming };

// In shared memory, for every thread its pieces of the weight, then of the rows of each stage.
template <class W, int V>
class Stages {
 public:
  static int64_t array_bytes(int threads) { return int64_t(V) * threads * sizeof(W); }

  TT_DEVICE Stages(unsigned char* memory, int arrays_of_stage, int number)
      : own(reinterpret_cast<W*>(memory) + thread()), arrays(arrays_of_stage), count(number) {}

  TT_DEVICE W* weight(int v) const { return own + v * threads(); }
  TT_DEVICE W* at(int stage, int array, int v) const { return own + ((1 + stage * arrays + array) * V + v) * threads(); }

  W* const own;
  const int arrays, count;
};

template <class S, int E, int V>
class Walk {
 public:
  using W = Word<S, E>;

  TT_DEVICE Walk(const LayerNormBackward<S>& problem, int width, int stage_count)
      : p(problem),
        of(width),
        stages(shared_memory() + RowThreads::shared_bytes, p.d_sum ? 3 : 2, stage_count),
        together(threads() / width),
        begin(p.N * block() / blocks()),
        end(p.N * (block() + 1) / blocks()),
        pieces(int(p.F / E)) {
    for (int v = 0; v < V; ++v)
      if (has(v)) *stages.weight(v) = words<S, E>(p.weight)[place(v)];
  }

  TT_DEVICE void run() {
    const int64_t steps = (end - begin + together - 1) / together;
    int filled = 0, stage = 0;
    for (; filled < stages.count - 1; ++filled) fetch(filled, filled);
    RowStatistics next = statistics(0);
    for (int64_t i = 0; i < steps; ++i) {
      fetch(i + stages.count - 1, filled);
      const RowStatistics row = next;
      next = statistics(i + 1);
      copies_wait(stages.count - 1);
      step(row_of(i), row, stage);
      filled = filled + 1 < stages.count ? filled + 1 : 0;
      stage = stage + 1 < stages.count ? stage + 1 : 0;
    }
  }

  // This block's part of dweight and dbias, (2, F).
  TT_DEVICE void store(float* to) {
    if (of.width <= warp_size) add_rows();
    if (of.row > 0) return;
    for (int v = 0; v < V; ++v)
      for (int e = 0; has(v) && e < E; ++e)
        for (int k = 0; k < 2; ++k) to[k * p.F + place(v) * E + e] = parts[k][v][e];
  }

 private:
  TT_DEVICE int place(int v) const { return of.rank + v * of.width; }
  TT_DEVICE bool has(int v) const { return place(v) < pieces; }
  TT_DEVICE int64_t row_of(int64_t step) const { return begin + step * together + of.row; }

  TT_DEVICE void fetch(int64_t step, int stage) const {
    const int64_t row = row_of(step);
    for (int v = 0; v < V; ++v)
      if (row < end && has(v)) {
        const int64_t piece = row * pieces + place(v);
        copy_async(stages.at(stage, d_normalised, v), words<S, E>(p.d_normalised) + piece);
        copy_async(stages.at(stage, sum, v), words<S, E>(p.sum) + piece);
        if (p.d_sum) copy_async(stages.at(stage, d_sum, v), words<S, E>(p.d_sum) + piece);
      }
    copies_commit();
  }

  TT_DEVICE RowStatistics statistics(int64_t step) const {
    const int64_t row = row_of(step);
    return row < end ? RowStatistics::load(p.statistics + 3 * row) : RowStatistics{};
  }

  TT_DEVICE void step(int64_t row, RowStatistics statistics, int stage) {
    float sums[2] = {};  // of g, of g n
    for (int v = 0; v < V; ++v)
      if (row < end && has(v)) add(v, statistics, stage, sums);
    of.sum(sums);
    for (int v = 0; v < V; ++v)
      if (row < end && has(v)) differentiate(v, row, statistics, stage, sums[0] / float(p.F), sums[1] / float(p.F));
  }

  TT_DEVICE void add(int v, RowStatistics statistics, int stage, float (&sums)[2]) {
    float d[E], s[E], w[E];
    unpack<S, E>(*stages.at(stage, d_normalised, v), d);
    unpack<S, E>(*stages.at(stage, sum, v), s);
    unpack<S, E>(*stages.weight(v), w);
    for (int e = 0; e < E; ++e) {
      const float n = statistics.normalise(s[e]), g = d[e] * w[e];
      sums[0] += g, sums[1] += g * n;
      parts[0][v][e] += d[e] * n, parts[1][v][e] += d[e];
    }
  }

  TT_DEVICE void differentiate(int v, int64_t row, RowStatistics statistics, int stage, float g_mean, float gn_mean) const {
    float d[E], s[E], w[E], skip[E] = {};
    unpack<S, E>(*stages.at(stage, d_normalised, v), d);
    unpack<S, E>(*stages.at(stage, sum, v), s);
    unpack<S, E>(*stages.weight(v), w);
    if (p.d_sum) unpack<S, E>(*stages.at(stage, d_sum, v), skip);
    for (int e = 0; e < E; ++e) s[e] = skip[e] + statistics.rstd * (d[e] * w[e] - g_mean - statistics.normalise(s[e]) * gn_mean);
    const int64_t piece = row * pieces + place(v);
    words<S, E>(p.d_x)[piece] = pack<S, E>(s);
    if (!p.d_branch) return;
    for (int e = 0; e < E; ++e) s[e] *= p.scale;
    words<S, E>(p.d_branch)[piece] = pack<S, E>(s);
  }

  // Of the rows of a warp, then of the warps, one half to the other. Half of the parts take no more memory than two arrays'
  // pieces.
  TT_DEVICE void add_rows() {
    for (int mask = of.width; mask < warp_size; mask *= 2) each([mask](float& part, int) { part += shuffle_xor(part, mask); });
    float* const memory = reinterpret_cast<float*>(shared_memory() + RowThreads::shared_bytes);
    for (int half = threads() / 2; half >= warp_size; half /= 2) {
      sync_block();
      if (thread() >= half && thread() < 2 * half) each([&](float& part, int i) { memory[i * half + thread() - half] = part; });
      sync_block();
      if (thread() < half) each([&](float& part, int i) { part += memory[i * half + thread()]; });
    }
  }

  template <class Body>
  TT_DEVICE void each(const Body& body) {
    for (int k = 0; k < 2; ++k)
      for (int v = 0; v < V; ++v)
        for (int e = 0; e < E; ++e) body(parts[k][v][e], (k * V + v) * E + e);
  }

  const LayerNormBackward<S>& p;
  RowThreads of;
  const Stages<W, V> stages;
  const int together;
  const int64_t begin, end;
  const int pieces;
  float parts[2][V][E] = {};  // of dweight, of dbias
};

template <class S, int E, int V>
TT_KERNEL TT_LAUNCH_BOUNDS(most_threads(V), resident_threads / most_threads(V)) void backward_rows(LayerNormBackward<S> p,
                                                                                                   float* parts, int width,
                                                                                                   int stages) {
  Walk<S, E, V> walk(p, width, stages);
  walk.run();
  walk.store(parts + block() * 2 * p.F);
}

// dx alone, for rows that registers do not hold: read twice, the second time from L2.
template <class S, int E>
TT_KERNEL TT_LAUNCH_BOUNDS(most_row_threads, 2) void backward_long_rows(LayerNormBackward<S> p) {
  RowThreads of(threads());
  const int64_t at = block() * p.F;
  const RowStatistics statistics = RowStatistics::load(p.statistics + 3 * int64_t(block()));
  const int pieces = int(p.F / E);
  float sums[2] = {}, d[E], s[E], w[E];
  const auto load = [&](int k) {
    unpack<S, E>(words<S, E>(p.d_normalised + at)[k], d);
    unpack<S, E>(words<S, E>(p.sum + at)[k], s);
    unpack<S, E>(words<S, E>(p.weight)[k], w);
    for (int e = 0; e < E; ++e) s[e] = statistics.normalise(s[e]), d[e] *= w[e];
  };
  for (int k = of.rank; k < pieces; k += threads()) {
    load(k);
    for (int e = 0; e < E; ++e) sums[0] += d[e], sums[1] += d[e] * s[e];
  }
  of.sum(sums);
  const float g_mean = sums[0] / float(p.F), gn_mean = sums[1] / float(p.F);
  for (int k = of.rank; k < pieces; k += threads()) {
    float skip[E] = {};
    load(k);
    if (p.d_sum) unpack<S, E>(words<S, E>(p.d_sum + at)[k], skip);
    for (int e = 0; e < E; ++e) s[e] = skip[e] + statistics.rstd * (d[e] - g_mean - s[e] * gn_mean);
    words<S, E>(p.d_x + at)[k] = pack<S, E>(s);
    for (int e = 0; e < E; ++e) s[e] *= p.scale;
    if (p.d_branch) words<S, E>(p.d_branch + at)[k] = pack<S, E>(s);
  }
}

// dweight and dbias of long rows: a thread sums a column over its block's stretch of rows.
template <class S>
TT_KERNEL TT_LAUNCH_BOUNDS(most_row_threads, 2) void sum_columns(LayerNormBackward<S> p, float* parts, int stretches) {
  const int64_t j = int64_t(block()) * threads() + thread();
  if (j >= p.F) return;
  const int64_t begin = p.N * block_y() / stretches, end = p.N * (block_y() + 1) / stretches;
  float d_weight = 0, d_bias = 0;
  for (int64_t row = begin; row < end; ++row) {
    const float d = to_float(p.d_normalised[row * p.F + j]);
    d_weight += d * RowStatistics::load(p.statistics + 3 * row).normalise(to_float(p.sum[row * p.F + j]));
    d_bias += d;
  }
  float* const own = parts + block_y() * 2 * p.F;
  own[j] = d_weight, own[p.F + j] = d_bias;
}

// A lane has a column, a warp every so many of the parts.
template <class S>
TT_KERNEL TT_LAUNCH_BOUNDS(most_row_threads, 2) void add_parts(LayerNormBackward<S> p, const float* parts, int count) {
  const int lane = thread() % warp_size, warp = thread() / warp_size, warps = threads() / warp_size;
  const int64_t j = int64_t(block()) * warp_size + lane;
  float total = 0;
  if (j < 2 * p.F)
    for (int i = warp; i < count; i += warps) total += parts[i * 2 * p.F + j];
  float* const of_warps = reinterpret_cast<float*>(shared_memory());
  of_warps[thread()] = total;
  sync_block();
  if (warp > 0 || j >= 2 * p.F) return;
  for (int i = 1; i < warps; ++i) total += of_warps[i * warp_size + lane];
  from_float(total, j < p.F ? p.d_weight[j] : p.d_bias[j - p.F]);
}

template <class S>
void add_all_parts(const LayerNormBackward<S>& p, const float* parts, int count, Queue queue) {
  constexpr int threads = 512;
  const Launch shape{.blocks = int((2 * p.F + warp_size - 1) / warp_size), .threads = threads, .shared = threads * sizeof(float)};
  launch(queue, shape, add_parts<S>, p, parts, count);
}

// As many blocks on a multiprocessor as give it the pieces it wants, but two stages fit for each.
template <class S, int E, int V>
void walk_rows(const LayerNormBackward<S>& p, const RowPlan& plan, Queue queue) {
  const int64_t array = Stages<Word<S, E>, V>::array_bytes(plan.threads), stage = array * (p.d_sum ? 3 : 2);
  const int64_t fixed = RowThreads::shared_bytes + array;
  const auto fitting = [&](int blocks) {
    return int(std::min<int64_t>((device().shared_bytes / blocks - fixed) / stage, most_stages));
  };
  const int threads = E == 1 ? resident_threads : std::min(resident_threads, pieces_of_stage / V);
  int resident = std::max(1, threads / plan.threads);
  while (resident > 1 && fitting(resident) < 2) --resident;
  const int stages = fitting(resident);
  const int blocks = int(std::min<int64_t>(p.blocks ? p.blocks : int64_t(device().multiprocessors) * resident, p.N));
  Scratch scratch(queue);
  float* const parts = scratch.get<float>(2 * p.F * blocks);
  const Launch shape{.blocks = blocks, .threads = plan.threads, .shared = fixed + stages * stage};
  launch(queue, shape, backward_rows<S, E, V>, p, parts, plan.width, stages);
  add_all_parts(p, parts, blocks, queue);
}

template <class S, int E>
void walk_long_rows(const LayerNormBackward<S>& p, Queue queue) {
  constexpr int threads = 128;
  launch(queue, {.blocks = int(p.N), .threads = most_row_threads, .shared = RowThreads::shared_bytes}, backward_long_rows<S, E>,
         p);
  const int across = int((p.F + threads - 1) / threads);
  const int64_t wanted = p.blocks ? p.blocks : int64_t(device().multiprocessors) * 2048 / threads / across + 1;
  const int stretches = int(std::min(wanted, p.N));
  Scratch scratch(queue);
  float* const parts = scratch.get<float>(2 * p.F * stretches);
  launch(queue, {.blocks = across, .blocks_y = stretches, .threads = threads}, sum_columns<S>, p, parts, stretches);
  add_all_parts(p, parts, stretches, queue);
}

}  // namespace

template <class S>
void layer_norm_backward(const LayerNormBackward<S>& p, Queue queue) {
  if (p.N == 0) {
    fill(p.d_weight, 0, size_t(p.F) * sizeof(S), queue);
    fill(p.d_bias, 0, size_t(p.F) * sizeof(S), queue);
    return;
  }
  const bool aligned = rows_are_aligned<S>(p.F, p.sum, p.weight, p.d_sum, p.d_normalised, p.d_x, p.d_branch);
  const RowPlan plan = plan_rows<S>(p.F, aligned, small_rows_threads);
  with_shape<S>(plan, [&](auto of) {
    using Shape = decltype(of);
    if constexpr (Shape::V > 0) walk_rows<S, Shape::E, Shape::V>(p, plan, queue);
    else walk_long_rows<S, Shape::E>(p, queue);
  });
}

template void layer_norm_backward(const LayerNormBackward<float>&, Queue);
template void layer_norm_backward(const LayerNormBackward<BFloat16>&, Queue);
template void layer_norm_backward(const LayerNormBackward<Float16>&, Queue);

}  // namespace throughtime::cuda
