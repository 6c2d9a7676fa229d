// Operations on device arrays outside the layers: copies between views, and a few elementwise operations.
#pragma once

#include <vector>

#include "../system/runtime.hpp"

namespace throughtime::cuda {

// Two arrays of one shape. Strides are in bytes, of either sign or zero; in `to`, zero only for axes of one element.
struct Pair {
  std::vector<int64_t> shape, to_strides, from_strides;
  void* to;
  const void* from;
  int64_t item;  // bytes of an element: 1, 2, 4 or 8
};

void copy(const Pair&, Stream);

// to += from, rounded once.
template <class S>
void add(const Pair&, Stream);

// to = scale * from, rounded once, or zero if the mask is true. All arrays are contiguous; the mask may be null.
template <class S>
void drop(S* to, const S* from, const uint8_t* mask, double scale, int64_t count, Stream);

// The random numbers of one mask: Philox4x64-10 with this key. The counter of block i is (i + 1, 0, mask, number).
struct Draw {
  uint64_t key[2], mask, number;
};

// Draws the same mask as NumPy does on the host: element i is true if 32-bit number i is below `threshold` (<= 2^32).
void draw_mask(uint8_t* mask, uint64_t threshold, const Draw&, int64_t count, Stream);

// Whether all `count` numbers of each of `steps` rows are finite.
template <class S>
void finite_rows(uint8_t* finite, const S* from, int64_t steps, int64_t count, Stream);

}  // namespace throughtime::cuda
