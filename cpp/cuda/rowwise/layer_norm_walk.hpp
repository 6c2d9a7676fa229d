// Backward of LayerNorm by resident blocks: each walks over its own stretch of rows, and its threads keep their columns' parts
// of dweight and dbias in registers.
//
// Rows are prefetched into shared memory while others are processed. Each thread copies its own pieces, so that no barrier is
// needed. A stage is about 768 pieces of 16 bytes of each array per multiprocessor, 36 KB, and all stages except the one being
// processed are in flight; 3.35 TB/s and a latency of 1 us need 25 KB on each of 132 multiprocessors.
#pragma once

#include "layer_norm_row.hpp"

namespace throughtime::cuda {

constexpr int pieces_of_stage = 768, resident_threads = 512, most_stages = 4;
enum Incoming { d_normalised, sum, d_sum };

// Shared memory: each thread's pieces of the weight, then of the rows of each stage.
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
    return row < end ? RowStatistics::load(p.statistics + 4 * row) : RowStatistics{};
  }

  TT_DEVICE void step(int64_t row, RowStatistics statistics, int stage) {
    float sums[2] = {};  // of g, of g n
    for (int v = 0; v < V; ++v)
      if (row < end && has(v)) add(v, statistics, stage, sums);
    of.sum(sums);
    const float g_mean = sums[0] / float(p.F), gn_mean = sums[1] / float(p.F);
    for (int v = 0; v < V; ++v)
      if (row < end && has(v)) differentiate(v, row, statistics, stage, g_mean, gn_mean);
  }

  TT_DEVICE void add(int v, RowStatistics statistics, int stage, float (&sums)[2]) {
    float d[E], s[E], w[E];
    from_word<S, E>(*stages.at(stage, d_normalised, v), d);
    from_word<S, E>(*stages.at(stage, sum, v), s);
    from_word<S, E>(*stages.weight(v), w);
    for (int e = 0; e < E; ++e) {
      const float n = statistics.normalise(s[e]), g = d[e] * w[e];
      sums[0] += g, sums[1] += g * n;
      parts[0][v][e] += d[e] * n, parts[1][v][e] += d[e];
    }
  }

  TT_DEVICE void differentiate(int v, int64_t row, RowStatistics statistics, int stage, float g_mean, float gn_mean) const {
    float d[E], s[E], w[E], skip[E] = {};
    from_word<S, E>(*stages.at(stage, d_normalised, v), d);
    from_word<S, E>(*stages.at(stage, sum, v), s);
    from_word<S, E>(*stages.weight(v), w);
    if (p.d_sum) from_word<S, E>(*stages.at(stage, d_sum, v), skip);
    for (int e = 0; e < E; ++e) s[e] = skip[e] + statistics.slope(d[e] * w[e] - g_mean - statistics.normalise(s[e]) * gn_mean);
    const int64_t piece = row * pieces + place(v);
    words<S, E>(p.d_x)[piece] = to_word<S, E>(s);
    if (!p.d_branch) return;
    for (int e = 0; e < E; ++e) s[e] *= p.scale;
    words<S, E>(p.d_branch)[piece] = to_word<S, E>(s);
  }

  // Adds the parts of the rows within a warp, then those of one half of the warps to the other half. Half of the parts need no
  // more memory than the pieces of two arrays.
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
TT_KERNEL TT_LAUNCH_BOUNDS(threads_per_block(V),
                           resident_threads / threads_per_block(V)) void backward_rows(LayerNormBackward<S> p, float* parts,
                                                                                       int width, int stages) {
  Walk<S, E, V> walk(p, width, stages);
  walk.run();
  walk.store(parts + block() * 2 * p.F);
}

}  // namespace throughtime::cuda
