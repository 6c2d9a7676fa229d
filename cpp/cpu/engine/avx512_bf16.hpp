// The product on AVX512_BF16: multiplies pairs of bfloat16 numbers and adds them into float32, at twice float32's rate. One
// term only: more would be slower than float32.
#pragma once

#if defined(__AVX512F__) && !defined(TT_VECTOR_BYTES)
#include <immintrin.h>

#include "bf16_terms.hpp"

namespace throughtime::TT_ISA {

constexpr bool has_avx512_bf16 = true;

// Longer sums are cut. A running sum of 4096 products has an error of 3e-6, negligible against bfloat16's; of 100,000, 1.3e-3.
constexpr int64_t dot_blocks = 128;

// sums (rows, vectors, 16) += rows (rows, 2 pairs) times the packed columns of `vectors` vectors. Must not be inlined: it is
// compiled for processors that have the instruction, its callers for those that may not.
template <int rows, int vectors>
__attribute__((target("avx512bf16"), noinline)) void add_dots(const Bfloat* row, int64_t stride, const Bfloat* packed,
                                                              int64_t vector_stride, int64_t pairs, float* sums) {
  __m512 sum[rows][vectors];
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sum[m][v] = _mm512_load_ps(sums + (m * vectors + v) * 16);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512bh weight[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) weight[v] = (__m512bh)_mm512_loadu_si512(packed + v * vector_stride + pair * tile_depth);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      int x;
      __builtin_memcpy(&x, row + m * stride + 2 * pair, sizeof x);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(x);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], both, weight[v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) _mm512_store_ps(sums + (m * vectors + v) * 16, sum[m][v]);
}

// The engine on these products.
class Avx512Bf16 : public SplitOperands {
 public:
  using Unit = Poll;
  static constexpr bool overlaps = false;
  static constexpr int64_t panels_at_once = 1, long_chunk = 2048;
  explicit Avx512Bf16(const Host& host) : SplitOperands(host, false) {}

  template <class Shape>
  void product(int64_t K, const SplitRows& rows, Range range, const Bfloat* packed, Panels panels, const float* initial,
               Sink<float> sink, Unit& unit) const {
    constexpr int vectors = Shape::vectors;
    const int64_t blocks = tile_blocks(K), vector_stride = blocks * tile_size;
    const int64_t products = K * (range.end - range.begin) * vectors * 16;
    for (int64_t i = 0; i < panels.count() && unit.goes_on(products); ++i) {
      const int64_t q = panels.at(i) * vectors;
      for_groups<Shape::rows>(range.begin, range.end, [&](int64_t first, auto count) __attribute__((always_inline)) {
        constexpr int n = decltype(count)::value;
        Vec<float> sums[n][vectors], part[n][vectors];
        for (int m = 0; m < n; ++m)
          for (int v = 0; v < vectors; ++v) sums[m][v] = initial ? load<Vec<float>>(initial + (q + v) * 16) : Vec<float>{};
        for (int64_t k = 0; k < blocks; k += dot_blocks) {
          const int64_t deep = blocks - k < dot_blocks ? blocks - k : dot_blocks;
          if (k > 0) __builtin_memset(part, 0, sizeof part);
          add_dots<n, vectors>(rows.data + first * rows.stride + k * tile_depth, rows.stride,
                               packed + q * vector_stride + k * tile_size, vector_stride, deep * (tile_depth / 2),
                               reinterpret_cast<float*>(k > 0 ? part : sums));
          for (int m = 0; k > 0 && m < n; ++m)
            for (int v = 0; v < vectors; ++v) sums[m][v] += part[m][v];
        }
        sink.put(sink.taker, first, n, q, sums[0]);
      });
    }
  }
};

}  // namespace throughtime::TT_ISA
#else
namespace throughtime::TT_ISA {
constexpr bool has_avx512_bf16 = false;
class Avx512Bf16;
}  // namespace throughtime::TT_ISA
#endif
