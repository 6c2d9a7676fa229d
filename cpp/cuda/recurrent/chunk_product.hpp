// Products over all rows of a chunk. float32 factors are used as they are, as one bfloat16 number, or as the sum of two. Then
// a b = a0 b1 + a0 b0 + a1 b0 is one product of three times the depth, [a0 a0 a1] times [b1 b0 b0], which avoids adding three
// results in memory.
#pragma once

#include "../system/bf16_terms.hpp"
#include "../system/grid.hpp"

namespace throughtime::cuda {

// Writes three parts: in part number `second` the second term of each float, in the other two the first term.
template <class S>
TT_KERNEL void split_thrice(const S* from, int64_t stride, int64_t columns, BFloat16* to, int64_t to_stride, int64_t part,
                            int second) {
  const GridPosition at = grid_position(columns);
  if (at.column >= columns) return;
  BFloat16 terms[2];
  split<S>(from[at.row * stride + at.column], terms);
  for (int i = 0; i < 3; ++i) to[at.row * to_stride + i * part + at.column] = i == second ? terms[1] : terms[0];
}

// The matrix as three parts along the product's depth, which is its stored rows or columns.
inline Matrix<const BFloat16> split_thrice(const Matrix<const float>& of, int64_t rows, int64_t columns, bool depth_is_rows,
                                           int second, Scratch& scratch, Stream stream) {
  BFloat16* const to = scratch.get<BFloat16>(3 * rows * columns);
  const int64_t stride = depth_is_rows ? columns : 3 * columns, part = depth_is_rows ? rows * columns : columns;
  launch(stream, over(rows, columns), split_thrice<float>, of.data, of.stride, columns, to, stride, part, second);
  return {to, stride, of.transposed};
}

// multiply() with `terms` bfloat16 numbers per float32 factor; 3: all bits.
template <class S, class O>
void chunk_product(int64_t m, int64_t n, int64_t k, Matrix<const S> a, Matrix<const S> b, Matrix<O> c, bool adds, int terms,
                   Stream stream) {
  if constexpr (__is_same(S, float))
    if (terms == 2) {
      Scratch scratch(stream);
      const auto left = split_thrice(a, a.transposed ? k : m, a.transposed ? m : k, a.transposed, 2, scratch, stream);
      const auto right = split_thrice(b, b.transposed ? n : k, b.transposed ? k : n, !b.transposed, 0, scratch, stream);
      return multiply<BFloat16, float>(m, n, 3 * k, left, right, c, adds, false, stream);
    }
  multiply<S, O>(m, n, k, a, b, c, adds, terms == 1, stream);
}

}  // namespace throughtime::cuda
