// Forward of layer_norm.hpp: threads hold their part of a row in registers between passes. Many rows at once on a
// multiprocessor hide each other's latency (64 registers per thread: 1024 threads, up to 128 KB in flight).
#include "../system/launch.hpp"
#include "layer_norm_row.hpp"

#include <math.h>

namespace throughtime::cuda {

namespace {

constexpr int small_rows_threads = 256;

// x + scale branch, rounded to S: a thread's pieces of one row. V pieces are held in registers; V = 0: any number of pieces,
// recomputed in each pass.
template <class S, int E, int V>
class Sum {
 public:
  using W = Word<S, E>;

  TT_DEVICE Sum(const LayerNormForward<S>& problem, int64_t row, const RowThreads& threads)
      : p(problem), at(row * p.F), rank(threads.rank), width(threads.width), pieces(row < p.N ? int(p.F / E) : 0) {
    if (pieces > 0) first_x = *words<S, 1>(p.x + at);
    if (pieces > 0 && p.branch) first_branch = *words<S, 1>(p.branch + at);
    if constexpr (V > 0) hold();
  }

  // The row's first number.
  TT_DEVICE float first() const {
    float s[1];
    from_word<S, 1>(add<1>(first_x, first_branch), s);
    return s[0];
  }

  // Calls body(position in the row, the E numbers there) for each piece.
  template <class Body>
  TT_DEVICE void each(const Body& body) const {
    if constexpr (V > 0)
      for (int v = 0; v < V; ++v) show(rank + v * width, held[v], body);
    else
      for (int k = rank; k < pieces; k += width) show(k, add<E>(x(k), branch(k)), body);
  }

 private:
  TT_DEVICE W x(int k) const { return load_once(words<S, E>(p.x + at) + k); }
  TT_DEVICE W branch(int k) const { return p.branch ? load_once(words<S, E>(p.branch + at) + k) : W{}; }

  // All loads before the first addition.
  TT_DEVICE void hold() {
    W second[V];
    for (int v = 0; v < V; ++v)
      if (const int k = rank + v * width; k < pieces) held[v] = x(k), second[v] = branch(k);
      else held[v] = second[v] = W{};
    for (int v = 0; v < V; ++v) held[v] = add<E>(held[v], second[v]);
  }

  template <int n>
  TT_DEVICE Word<S, n> add(Word<S, n> a, Word<S, n> b) const {
    if (!p.branch) return a;
    float x[n], branch[n];
    from_word<S, n>(a, x), from_word<S, n>(b, branch);
    for (int e = 0; e < n; ++e) x[e] = fmaf(p.scale, branch[e], x[e]);
    return to_word<S, n>(x);
  }

  template <class Body>
  TT_DEVICE void show(int k, W word, const Body& body) const {
    if (k >= pieces) return;
    float s[E];
    from_word<S, E>(word, s);
    body(k * E, s);
  }

  const LayerNormForward<S>& p;
  const int64_t at;
  const int rank, width, pieces;
  Word<S, 1> first_x{}, first_branch{};
  W held[V ? V : 1];
};

// First the mean, rounded to float, from differences from the first number, which are exactly zero if all numbers are equal.
// Then the mean's rounding error and the variance, from differences from the rounded mean, which cancel only the digits that
// the whole row shares.
template <class S, int E, int V>
TT_DEVICE RowStatistics measure(const Sum<S, E, V>& sum, RowThreads& of, float F, float eps, float unit) {
  const float first = sum.first() * unit;
  float total[1] = {};
  sum.each([&](int, const float (&s)[E]) {
    for (int e = 0; e < E; ++e) total[0] += s[e] * unit - first;
  });
  of.sum(total);
  const float high = first + total[0] / F;
  float rest[2] = {};
  sum.each([&](int, const float (&s)[E]) {
    for (int e = 0; e < E; ++e) {
      const float d = s[e] * unit - high;
      rest[0] += d, rest[1] += d * d;
    }
  });
  of.sum(rest);
  const float low = rest[0] / F, variance = rest[1] / F - low * low;
  const float rstd = 1 / sqrtf((variance < 0 ? 0 : variance) + eps * unit * unit);
  return {high, low, rstd > RowUnit<float>::most ? RowUnit<float>::most : rstd, unit};
}

// Repeats in a better unit if any row of the warp has one. Squares of Float16 are always in range.
template <class S, int E, int V>
TT_DEVICE RowStatistics measure(const Sum<S, E, V>& sum, RowThreads& of, float F, float eps) {
  if constexpr (__is_same(S, Float16)) return measure(sum, of, F, eps, 1);
  float unit = 1;
#pragma unroll 1
  for (int pass = 0;; ++pass) {
    const RowStatistics row = measure(sum, of, F, eps, unit);
    if (pass == 1 || !any_of_warp(row.better_unit() != 1)) return row;
    unit = row.better_unit();
  }
}

template <class S, int E, int V>
TT_KERNEL TT_LAUNCH_BOUNDS(most_row_threads, 2) void forward_rows(LayerNormForward<S> p, int width) {
  RowThreads of(width);
  const int64_t row = int64_t(block()) * (threads() / width) + of.row;
  const Sum<S, E, V> sum(p, row, of);
  const RowStatistics statistics = measure(sum, of, float(p.F), float(p.eps));
  sum.each([&](int j, const float (&s)[E]) {
    float weight[E], y[E];
    from_word<S, E>(*words<S, E>(p.weight + j), weight);
    from_word<S, E>(*words<S, E>(p.bias + j), y);
    for (int e = 0; e < E; ++e) y[e] = fmaf(statistics.normalise(s[e]), weight[e], y[e]);
    *words<S, E>(p.normalised + row * p.F + j) = to_word<S, E>(y);
    if (p.sum) *words<S, E>(p.sum + row * p.F + j) = to_word<S, E>(s);
  });
  if (p.statistics && of.rank == 0 && row < p.N) statistics.store(p.statistics + 4 * row);
}

}  // namespace

template <class S>
void layer_norm_forward(const LayerNormForward<S>& p, Stream stream) {
  if (p.N == 0) return;
  const bool aligned = rows_are_aligned<S>(p.F, p.x, p.branch, p.weight, p.bias, p.sum, p.normalised);
  const RowPlan plan = plan_rows<S>(p.F, aligned, small_rows_threads);
  const Launch shape{
      .blocks = int((p.N + plan.together() - 1) / plan.together()), .threads = plan.threads, .shared = RowThreads::shared_bytes};
  with_shape<S>(plan, [&](auto of) { launch(stream, shape, forward_rows<S, decltype(of)::E, decltype(of)::V>, p, plan.width); });
}

template void layer_norm_forward(const LayerNormForward<float>&, Stream);
template void layer_norm_forward(const LayerNormForward<BFloat16>&, Stream);
template void layer_norm_forward(const LayerNormForward<Float16>&, Stream);

}  // namespace throughtime::cuda
