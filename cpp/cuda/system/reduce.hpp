// Sums and maxima over a warp and over a block, in a fixed order: the same bits in every run and in every thread. All threads
// must take part.
#pragma once

#include "device.hpp"

namespace throughtime::cuda {

struct Add {
  template <class T>
  TT_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  TT_DEVICE T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

template <class T, class Combine>
TT_DEVICE T over_warp(T value, Combine combine) {
  for (int mask = warp_size / 2; mask > 0; mask /= 2) value = combine(value, shuffle_xor(value, mask));
  return value;
}

// `room` is shared memory for one number per warp.
template <class T, class Combine>
TT_DEVICE T over_block(T value, T* room, Combine combine) {
  value = over_warp(value, combine);
  if (thread() % warp_size == 0) room[thread() / warp_size] = value;
  sync_block();
  value = room[0];
  for (int warp = 1; warp < threads() / warp_size; ++warp) value = combine(value, room[warp]);
  sync_block();  // now the room may be reused
  return value;
}

}  // namespace throughtime::cuda
