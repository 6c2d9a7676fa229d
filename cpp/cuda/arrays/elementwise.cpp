// Kernels of elementwise.hpp. Threads stride over the elements; an element's offset follows from its number, axis by axis.
#include "elementwise.hpp"

#include <algorithm>
#include <stdexcept>

#include "../system/launch.hpp"

namespace throughtime::cuda {

namespace {

constexpr int max_axes = 8, block_threads = 128;
constexpr int64_t most_blocks = 2048;  // several per multiprocessor; then several elements per thread

// Strides in elements; slowest axis first.
struct Axes {
  int rank;
  int64_t count, size[max_axes], to[max_axes], from[max_axes];
};

struct Offsets {
  int64_t to, from;
};

TT_DEVICE Offsets offsets_of(const Axes& axes, int64_t number) {
  Offsets offsets{0, 0};
  for (int axis = axes.rank - 1; axis > 0; --axis) {
    const int64_t rest = number / axes.size[axis], index = number - rest * axes.size[axis];
    offsets.to += index * axes.to[axis], offsets.from += index * axes.from[axis];
    number = rest;
  }
  return {offsets.to + number * axes.to[0], offsets.from + number * axes.from[0]};
}

TT_DEVICE int64_t first_element() { return int64_t(block()) * threads() + thread(); }
TT_DEVICE int64_t elements_between() { return int64_t(blocks()) * threads(); }

template <class T>
struct OfPair {
  T* to;
  const T* from;
  Axes axes;
};

template <class T>
TT_KERNEL void copy_elements(OfPair<T> p) {
  for (int64_t i = first_element(); i < p.axes.count; i += elements_between()) {
    const Offsets offsets = offsets_of(p.axes, i);
    p.to[offsets.to] = p.from[offsets.from];
  }
}

template <class S>
TT_KERNEL void add_elements(OfPair<S> p) {
  for (int64_t i = first_element(); i < p.axes.count; i += elements_between()) {
    const Offsets offsets = offsets_of(p.axes, i);
    from_float(to_float(p.to[offsets.to]) + to_float(p.from[offsets.from]), p.to[offsets.to]);
  }
}

template <class S>
struct OfDrop {
  S* to;
  const S* from;
  const uint8_t* mask;
  double scale;
  int64_t count;
};

TT_DEVICE void scaled(double value, double scale, double& to) { to = value * scale; }
template <class S>
TT_DEVICE void scaled(S value, double scale, S& to) {
  from_float(to_float(value) * float(scale), to);
}

template <class S>
TT_KERNEL void drop_elements(OfDrop<S> p) {
  for (int64_t i = first_element(); i < p.count; i += elements_between()) {
    const bool dropped = p.mask && p.mask[i];
    scaled(dropped ? S{} : p.from[i], p.scale, p.to[i]);
  }
}

struct OfMask {
  uint8_t* mask;
  uint64_t threshold;
  Draw draw;
  int64_t count;
};

// The upper half of a product of 128 bits.
TT_DEVICE uint64_t high_product(uint64_t a, uint64_t b) {
  constexpr uint64_t low = 0xffffffff;
  const uint64_t cross = (a >> 32) * (b & low) + ((a & low) * (b & low) >> 32);
  return (a >> 32) * (b >> 32) + (cross >> 32) + (((cross & low) + (a & low) * (b >> 32)) >> 32);
}

constexpr int block_numbers = 8;  // numbers of 32 bits in a block

// Philox4x64-10 (Salmon et al. 2011): the counter becomes the block of random bits.
TT_DEVICE void philox(uint64_t (&x)[4], uint64_t key0, uint64_t key1) {
  constexpr uint64_t a = 0xd2e7470ee14c6c93, b = 0xca5a826395121157;
  for (int round = 0; round < 10; ++round) {
    const uint64_t high_a = high_product(a, x[0]), low_a = a * x[0], high_b = high_product(b, x[2]), low_b = b * x[2];
    x[0] = high_b ^ x[1] ^ key0, x[1] = low_b;
    x[2] = high_a ^ x[3] ^ key1, x[3] = low_a;
    key0 += 0x9e3779b97f4a7c15, key1 += 0xbb67ae8584caa73b;
  }
}

// One block per step of the loop; the lower half of each 64 bits is the first number.
TT_KERNEL void draw_blocks(OfMask p) {
  for (int64_t i = first_element(); i * block_numbers < p.count; i += elements_between()) {
    uint64_t x[] = {uint64_t(i) + 1, 0, p.draw.mask, p.draw.number};
    philox(x, p.draw.key[0], p.draw.key[1]);
    for (int k = 0; k < block_numbers; ++k) {
      const int64_t element = i * block_numbers + k;
      if (element < p.count) p.mask[element] = (x[k / 2] >> 32 * (k % 2) & 0xffffffff) < p.threshold;
    }
  }
}

template <class S>
struct OfRows {
  uint8_t* finite;
  const S* from;
  int64_t count;
};

// One block per row.
template <class S>
TT_KERNEL void look_for_infinite(OfRows<S> p) {
  constexpr uint32_t exponent = 0x7f800000;
  const S* row = p.from + int64_t(block()) * p.count;
  int bad = 0;
  for (int64_t i = thread(); i < p.count; i += threads()) bad |= (bits_of(to_float(row[i])) & exponent) == exponent;
  for (int mask = 1; mask < warp_size; mask *= 2) bad |= shuffle_xor(bad, mask);
  int* of_warps = reinterpret_cast<int*>(shared_memory());
  if (thread() % warp_size == 0) of_warps[thread() / warp_size] = bad;
  sync_block();
  if (thread() > 0) return;
  for (int warp = 1; warp < threads() / warp_size; ++warp) bad |= of_warps[warp];
  p.finite[block()] = !bad;
}

Launch over(int64_t count) {
  return {.blocks = int(std::min((count + block_threads - 1) / block_threads, most_blocks)), .threads = block_threads};
}

// Drops axes of one element and merges neighbouring axes that are contiguous in both arrays. Strides stay in bytes.
Axes joined(const Pair& pair) {
  Axes axes{};
  axes.count = 1;
  for (size_t i = 0; i < pair.shape.size(); ++i) {
    const int64_t size = pair.shape[i], to = pair.to_strides[i], from = pair.from_strides[i];
    axes.count *= size;
    if (size == 1) continue;
    const int last = axes.rank - 1;
    if (axes.rank && axes.to[last] == to * size && axes.from[last] == from * size) {
      axes.size[last] *= size, axes.to[last] = to, axes.from[last] = from;
      continue;
    }
    if (axes.rank == max_axes) throw std::runtime_error("copy: more than 8 axes that are not one in memory");
    axes.size[axes.rank] = size, axes.to[axes.rank] = to, axes.from[axes.rank++] = from;
  }
  if (!axes.rank) axes.rank = 1, axes.size[0] = 1, axes.to[0] = axes.from[0] = pair.item;
  return axes;
}

bool in_one_piece(const Axes& axes, int64_t item) { return axes.rank == 1 && axes.to[0] == item && axes.from[0] == item; }

// Whether the innermost axis is contiguous and can be copied `bytes` at a time.
bool can_widen(const Axes& axes, const Pair& pair, int64_t bytes) {
  const int last = axes.rank - 1;
  uint64_t all = uint64_t(pair.to) | uint64_t(pair.from) | uint64_t(axes.size[last] * pair.item);
  for (int axis = 0; axis < last; ++axis) all |= uint64_t(axes.to[axis]) | uint64_t(axes.from[axis]);
  return axes.to[last] == pair.item && axes.from[last] == pair.item && all % uint64_t(bytes) == 0;
}

// Converts strides in bytes to strides in elements of `wide` bytes, each one or more of the array's.
Axes in_elements(Axes axes, int64_t item, int64_t wide) {
  const int last = axes.rank - 1;
  axes.count = axes.count * item / wide;
  axes.size[last] = axes.size[last] * item / wide;
  if (wide > item) axes.to[last] = axes.from[last] = wide;
  for (int axis = 0; axis < axes.rank; ++axis) {
    if (axes.to[axis] % wide || axes.from[axis] % wide) throw std::runtime_error("strides: expected whole elements");
    axes.to[axis] /= wide, axes.from[axis] /= wide;
  }
  return axes;
}

template <class T>
bool try_copy(const Axes& axes, const Pair& pair, Stream stream) {
  const int64_t wide = sizeof(T);
  if (wide != pair.item && (wide < pair.item || !can_widen(axes, pair, wide))) return false;
  const OfPair<T> p{static_cast<T*>(pair.to), static_cast<const T*>(pair.from), in_elements(axes, pair.item, wide)};
  launch(stream, over(p.axes.count), copy_elements<T>, p);
  return true;
}

}  // namespace

void copy(const Pair& pair, Stream stream) {
  const Axes axes = joined(pair);
  if (axes.count == 0) return;
  if (in_one_piece(axes, pair.item)) return copy(pair.to, pair.from, size_t(axes.count * pair.item), stream);
  try_copy<uint4>(axes, pair, stream) || try_copy<uint2>(axes, pair, stream) || try_copy<uint32_t>(axes, pair, stream) ||
      try_copy<uint16_t>(axes, pair, stream) || try_copy<uint8_t>(axes, pair, stream);
}

template <class S>
void add(const Pair& pair, Stream stream) {
  const Axes axes = joined(pair);
  if (axes.count == 0) return;
  const OfPair<S> p{static_cast<S*>(pair.to), static_cast<const S*>(pair.from), in_elements(axes, sizeof(S), sizeof(S))};
  launch(stream, over(axes.count), add_elements<S>, p);
}

template <class S>
void drop(S* to, const S* from, const uint8_t* mask, double scale, int64_t count, Stream stream) {
  if (count) launch(stream, over(count), drop_elements<S>, OfDrop<S>{to, from, mask, scale, count});
}

void draw_mask(uint8_t* mask, uint64_t threshold, const Draw& draw, int64_t count, Stream stream) {
  const int64_t draws = (count + block_numbers - 1) / block_numbers;
  if (count) launch(stream, over(draws), draw_blocks, OfMask{mask, threshold, draw, count});
}

template <class S>
void finite_rows(uint8_t* finite, const S* from, int64_t steps, int64_t count, Stream stream) {
  const Launch shape{.blocks = int(steps), .threads = block_threads, .shared = block_threads / warp_size * 4};
  if (steps) launch(stream, shape, look_for_infinite<S>, OfRows<S>{finite, from, count});
}

template void add<float>(const Pair&, Stream);
template void add<BFloat16>(const Pair&, Stream);
template void add<Float16>(const Pair&, Stream);
template void drop(double*, const double*, const uint8_t*, double, int64_t, Stream);
template void drop(float*, const float*, const uint8_t*, double, int64_t, Stream);
template void drop(BFloat16*, const BFloat16*, const uint8_t*, double, int64_t, Stream);
template void drop(Float16*, const Float16*, const uint8_t*, double, int64_t, Stream);
template void finite_rows(uint8_t*, const float*, int64_t, int64_t, Stream);
template void finite_rows(uint8_t*, const BFloat16*, int64_t, int64_t, Stream);
template void finite_rows(uint8_t*, const Float16*, int64_t, int64_t, Stream);

}  // namespace throughtime::cuda
