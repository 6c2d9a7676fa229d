// A row of F numbers spread over threads. It is cut into pieces of E numbers, each one load; a thread has every `width`-th
// piece. The `width` threads of a row are a power of two lanes of one warp, or a whole block.
#pragma once

#include "../system/device.hpp"

namespace throughtime::cuda {

template <int bytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// E numbers of type S as one word of memory.
template <class S, int E>
using Word = typename WordOf<int(sizeof(S)) * E>::type;

template <class S, int E>
TT_DEVICE const Word<S, E>* words(const S* data) {
  return reinterpret_cast<const Word<S, E>*>(data);
}
template <class S, int E>
TT_DEVICE Word<S, E>* words(S* data) {
  return reinterpret_cast<Word<S, E>*>(data);
}

template <class S, int E>
TT_DEVICE void from_word(Word<S, E> word, float (&to)[E]) {
  S numbers[E];
  __builtin_memcpy(numbers, &word, sizeof word);
  for (int e = 0; e < E; ++e) to[e] = to_float(numbers[e]);
}

template <class S, int E>
TT_DEVICE Word<S, E> to_word(const float (&from)[E]) {
  S numbers[E];
  for (int e = 0; e < E; ++e) from_float(from[e], numbers[e]);
  Word<S, E> word;
  __builtin_memcpy(&word, numbers, sizeof word);
  return word;
}

// Threads per block. Larger V needs more registers per thread; kernels for short rows need more threads.
constexpr int most_row_threads = 512;
constexpr int threads_per_block(int V) { return V == 1 || V == 2 ? 256 : most_row_threads; }

// A thread's row in the block, and its rank in the row.
class RowThreads {
 public:
  static constexpr int64_t shared_bytes = 2 * most_row_threads / warp_size * 2 * sizeof(float);

  TT_DEVICE explicit RowThreads(int of_row)
      : width(of_row), row(thread() / of_row), rank(thread() % of_row), slots(reinterpret_cast<float*>(shared_memory())) {}

  // Sums n numbers over the row's threads, in a fixed order: the same bits in all of them. All threads of the block take part.
  template <int n>
  TT_DEVICE void sum(float (&values)[n]) {
    static_assert(n <= 2);
    for (int mask = warp_size / 2; mask > 0; mask /= 2)
      if (mask < width)
        for (int i = 0; i < n; ++i) values[i] += shuffle_xor(values[i], mask);
    if (width > warp_size) sum_warps(values);
  }

  const int width, row, rank;

 private:
  // Successive sums alternate between two slots, so that one barrier per sum is enough.
  template <int n>
  TT_DEVICE void sum_warps(float (&values)[n]) {
    float* const slot = slots + buffer * (most_row_threads / warp_size * 2);
    buffer ^= 1;
    if (thread() % warp_size == 0)
      for (int i = 0; i < n; ++i) slot[thread() / warp_size * n + i] = values[i];
    sync_block();
    for (int i = 0; i < n; ++i) values[i] = slot[i];
    for (int warp = 1; warp < threads() / warp_size; ++warp)
      for (int i = 0; i < n; ++i) values[i] += slot[warp * n + i];
  }

  float* const slots;
  int buffer = 0;
};

// How rows are spread: V pieces of E numbers per thread; V = 0: more than fit in registers.
struct RowPlan {
  int E, V, width;
  int threads;  // per block: `width`, or those of several rows
  int together() const { return threads / width; }
};

// `aligned`: all rows begin at a multiple of 16 bytes. Short rows share a block of `small_rows_threads` threads.
template <class S>
RowPlan plan_rows(int64_t F, bool aligned, int small_rows_threads) {
  const int E = aligned ? 16 / int(sizeof(S)) : 1;
  const int64_t pieces = F / E;
  for (int V = 4; V > 0; --V) {
    const int64_t needed = (pieces + V - 1) / V;
    int64_t width = 1;
    while (width < needed && width < warp_size) width *= 2;
    if (needed > warp_size) width = (needed + warp_size - 1) / warp_size * warp_size;
    if (width > most_row_threads) return {E, 0, most_row_threads, most_row_threads};
    // Many loads per thread, if these are whole cache lines and less than a quarter is empty.
    const bool good = width >= 8 && 4 * pieces > 3 * V * width;
    if (good || V == 1 || E == 1) return {E, V, int(width), width > warp_size ? int(width) : small_rows_threads};
  }
  return {};
}

template <int pieces_of, int pieces>
struct RowShape {
  static constexpr int E = pieces_of, V = pieces;
};

// Calls body(RowShape<E, V>{}) as planned.
template <class S, class Body>
void with_shape(const RowPlan& plan, const Body& body) {
  constexpr int E = 16 / int(sizeof(S));
  if (plan.E == 1) return plan.V ? body(RowShape<1, 4>{}) : body(RowShape<1, 0>{});
  switch (plan.V) {
    case 1:
      return body(RowShape<E, 1>{});
    case 2:
      return body(RowShape<E, 2>{});
    case 3:
      return body(RowShape<E, 3>{});
    case 4:
      return body(RowShape<E, 4>{});
    default:
      return body(RowShape<E, 0>{});
  }
}

}  // namespace throughtime::cuda
