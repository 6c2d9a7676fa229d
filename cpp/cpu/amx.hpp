// The product on AMX: a float32 is the sum of up to three bfloat16 numbers of 8 bits each, and a product of two such sums the sum
// of their larger products in float32 (Henry, Tang and Heinecke 2019): six for float32's accuracy, three for about 2^-16, one for
// bfloat16's. Left operands are split rows, right ones tiles of 32 x 16, pairs of k side by side.
#pragma once

#include <immintrin.h>

#include "gemm.hpp"

namespace throughtime::TT_ISA {

using Bfloat = uint16_t;
typedef Bfloat Halves __attribute__((vector_size(32)));   // 16 numbers
typedef Bfloat Pairs __attribute__((vector_size(64)));    // 16 pairs
typedef uint32_t Words __attribute__((vector_size(64)));  // the bits of 16 floats
constexpr int64_t tile_rows = 16, tile_depth = 32, tile_size = 512;
// Longer sums are cut: of 4096 products, one running sum has an error of 5.3e-7, cut ones 2.4e-7.
constexpr int64_t summed_blocks = 16;

TT_INLINE int64_t tile_blocks(int64_t K) { return ceil_div(K, tile_depth); }

// The next term of each number, rounded; the number loses it, exactly: three terms are all of a float32 above 2^-110. What would
// round to infinity is cut off instead. An infinity leaves a NaN for the terms after it.
TT_INLINE Halves next_term(Vec<float>& value) {
  constexpr uint32_t exponent = 0x7f800000, upper = 0xffff0000;
  Words bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & upper, quiet = (bits & upper) | 0x400000;
  const Words kept = value != value ? quiet : (rounded & exponent) != exponent ? rounded : bits & upper;
  Vec<float> term;
  __builtin_memcpy(&term, &kept, sizeof term);
  value -= term;
  return __builtin_convertvector(kept >> 16, Halves);
}

// Rows of K numbers, split: (terms, rows, stride), zeros from K to a multiple of the tile's depth.
struct SplitRows {
  Bfloat* data;
  int64_t stride, term_stride;
  int terms;

  // One line more than the numbers need: rows a power of two apart would share a few sets of the cache.
  static int64_t padded(int64_t K) { return (tile_blocks(K) + 1) * tile_depth; }
  static int64_t size(int64_t rows, int64_t K, int terms) { return terms * rows * padded(K); }

  SplitRows() = default;
  SplitRows(Bfloat* data, int64_t rows, int64_t K, int terms)
      : data(data), stride(padded(K)), term_stride(rows * stride), terms(terms) {}

  SplitRows from(int64_t row) const {
    SplitRows rest = *this;
    rest.data += row * stride;
    return rest;
  }

  TT_INLINE void put(int64_t row, int64_t k, Vec<float> value) const {
    for (int i = 0; i < terms; ++i) store(data + i * term_stride + row * stride + k, next_term(value));
  }

  TT_INLINE Vec<float> get(int64_t row, int64_t k) const {
    Vec<float> sum = {};
    for (int i = 0; i < terms; ++i) {
      const Words bits = __builtin_convertvector(load<Halves>(data + i * term_stride + row * stride + k), Words) << 16;
      Vec<float> term;
      __builtin_memcpy(&term, &bits, sizeof term);
      sum += term;
    }
    return sum;
  }

  // Null is a row of zeros.
  void set(int64_t row, const float* from, int64_t K) const {
    for (int64_t k = 0; k < tile_blocks(K) * tile_depth; k += 16)
      put(row, k, from && k < K ? load_some<Vec<float>>(from + k, K - k) : Vec<float>{});
  }
};

// Two rows of 16 numbers as the pairs of a tile's row.
TT_INLINE Pairs pair_up(Halves upper, Halves lower) {
  return __builtin_shufflevector(upper, lower, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11,
                                 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// What a thread's tile registers are set up for. Tiles 0 to 3 hold sums, 4 (and 5) rows, the others the right operand.
class TileUnit {
 public:
  TileUnit() = default;
  TileUnit(const TileUnit&) = delete;
  ~TileUnit() {
    if (upper_) _tile_release();
  }

  // For blocks of so many rows in an upper and a lower tile; lower may be 0.
  void shape(int upper, int lower) {
    if (upper == upper_ && lower == lower_) return;
    upper_ = upper, lower_ = lower;
    struct alignas(64) Config {
      uint8_t palette, start, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      const bool right = i >= (lower ? 6 : 5), below = lower && (i == 2 || i == 3 || i == 5);
      config.bytes[i] = 64;
      config.rows[i] = uint8_t(right ? 16 : below ? lower : upper);
    }
    asm volatile("" ::"r"(&config) : "memory");  // GCC 12 takes only the first 8 bytes to be read
    _tile_loadconfig(&config);
  }

 private:
  int upper_ = 0, lower_ = 0;
};

// One block of sums, over all of K.
struct Block {
  const Bfloat *rows, *tiles;   // the first row's first term; the first vector's first tile
  int64_t stride, term_stride;  // of the rows
  int64_t vector_stride;        // of the tiles
  int64_t blocks;               // of K
};

// Calls left(term) and right(term) to load, multiply() for each pair of terms: one side is replaced at a time. The order of the
// pairs does not matter to the rounding, for the running sum holds the large products of all blocks before.
template <int terms, class Left, class Right, class Multiply>
TT_INLINE void for_pairs(const Left& left, const Right& right, const Multiply& multiply) {
  right(0);
  if constexpr (terms == 3) left(2), multiply();
  if constexpr (terms >= 2) left(1), multiply();
  if constexpr (terms == 3) right(1), multiply();
  left(0);
  if constexpr (terms == 2) multiply(), right(1);
  if constexpr (terms == 3) multiply(), right(2), multiply(), right(0);
  multiply();
}

// Two tiles of rows times two vectors.
template <int terms>
TT_INLINE void multiply_square(const Block& b) {
  for (int64_t k = 0; k < b.blocks; ++k)
    for_pairs<terms>(
        [&](int term) __attribute__((always_inline)) {
          const Bfloat* from = b.rows + term * b.term_stride + k * tile_depth;
          _tile_loadd(4, from, b.stride * 2);
          _tile_loadd(5, from + tile_rows * b.stride, b.stride * 2);
        },
        [&](int term) __attribute__((always_inline)) {
          const Bfloat* from = b.tiles + (k * terms + term) * tile_size;
          _tile_loadd(6, from, 64);
          _tile_loadd(7, from + b.vector_stride, 64);
        },
        []() __attribute__((always_inline)) {
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        });
}

// One tile of rows times up to four vectors, for four sums hide the latency. The same products in the same order as above.
template <int terms, int vectors>
TT_INLINE void multiply_line(const Block& b) {
  for (int64_t k = 0; k < b.blocks; ++k) {
    const Bfloat* tiles = b.tiles + k * terms * tile_size;
    for_pairs<terms>(
        [&](int term)
            __attribute__((always_inline)) { _tile_loadd(4, b.rows + term * b.term_stride + k * tile_depth, b.stride * 2); },
        [&](int term) __attribute__((always_inline)) { tiles = b.tiles + (k * terms + term) * tile_size; },
        [&]() __attribute__((always_inline)) {
          _tile_loadd(5, tiles, 64);
          _tile_dpbf16ps(0, 4, 5);
          _tile_loadd(6, tiles + b.vector_stride, 64);
          _tile_dpbf16ps(1, 4, 6);
          if constexpr (vectors == 4) {
            _tile_loadd(7, tiles + 2 * b.vector_stride, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, tiles + 3 * b.vector_stride, 64);
            _tile_dpbf16ps(3, 4, 5);
          }
        });
  }
}

// How a loop does its products on AMX; Fma in gemm.hpp does them on vector registers.
class Amx {
 public:
  static constexpr bool splits = true;
  using Weight = Bfloat;
  using Room = Bfloat;
  using Rows = SplitRows;
  using Columns = SplitRows;
  using Unit = TileUnit;

  explicit Amx(const Host& host) : terms_(host.terms) {}

  int64_t packed_size(int64_t K, int64_t vectors) const { return vectors * tile_blocks(K) * terms_ * tile_size; }
  int64_t room_size(int64_t rows, int64_t K) const { return SplitRows::size(rows, K, terms_); }
  SplitRows rows(Bfloat* room, int64_t count, int64_t K) const { return {room, count, K, terms_}; }
  SplitRows columns(Bfloat* room, int64_t count, int64_t K) const { return {room, count, K, terms_}; }
  static int64_t columns_padded(int64_t K) { return tile_blocks(K) * tile_depth; }
  SplitRows rows_of(const SplitRows& columns, const float**, int64_t begin, int64_t) const { return columns.from(begin); }

  // As in pack.hpp, in tiles: (vector, block of k, term, 16 pairs of k, 16 columns, 2).
  template <int>
  void pack_rows(const float* weight, int64_t K, Interleaved order, Range range, Bfloat* packed) const {
    for (int64_t q = range.begin; q < range.end; ++q)
      for (int64_t block = 0; block < tile_blocks(K); ++block) {
        Vec<float> pairs[3][16];  // of one lane, then of one pair
        for (int lane = 0; lane < 16; ++lane) {
          const int64_t row = order.row(q, lane);
          for (int half = 0; half < 2; ++half) {
            const int64_t k = block * tile_depth + half * 16;
            Vec<float> value = row < 0 || k >= K ? Vec<float>{} : load_some<Vec<float>>(weight + row * K + k, K - k);
            for (int i = 0; i < terms_; ++i) store(reinterpret_cast<Bfloat*>(&pairs[i][lane]) + half * 16, next_term(value));
          }
        }
        for (int i = 0; i < terms_; ++i) {
          transpose(pairs[i]);
          for (int pair = 0; pair < 16; ++pair) store(tile(packed, K, q, block, i) + pair * tile_depth, pairs[i][pair]);
        }
      }
  }

  template <int vectors>
  void pack_columns(const float* weight, int64_t N, Interleaved order, Range range, Bfloat* packed) const {
    const int64_t K = order.vectors() * 16;
    const auto value = [&](int64_t k, int64_t column) {
      const int64_t row = k < K ? order.row(k / 16, k % 16) : -1;
      return row < 0 || column >= N ? Vec<float>{} : load_some<Vec<float>>(weight + row * N + column, N - column);
    };
    for (int64_t q = range.begin * vectors; q < range.end * vectors; ++q)
      for (int64_t k = 0; k < tile_blocks(K) * tile_depth; k += 2) {
        Vec<float> upper = value(k, q * 16), lower = value(k + 1, q * 16);
        for (int i = 0; i < terms_; ++i) {
          const Halves term = next_term(upper);
          store(tile(packed, K, q, k / tile_depth, i) + k % tile_depth * 16, pair_up(term, next_term(lower)));
        }
      }
  }

  // `count` vectors of columns, from vector `first` on, of rows that are summed over: `row(r)` is where the r-th of K lies.
  template <class Row>
  void pack_split(const SplitRows& rows, int64_t K, int64_t first, int count, Bfloat* packed, const Row& row) const {
    for (int64_t q = 0; q < count; ++q)
      for (int64_t k = 0; k < tile_blocks(K) * tile_depth; k += 2)
        for (int i = 0; i < terms_; ++i) {
          const auto part = [&](int64_t k) {
            return k < K ? load<Halves>(rows.data + i * rows.term_stride + row(k) * rows.stride + (first + q) * 16) : Halves{};
          };
          store(tile(packed, K, q, k / tile_depth, i) + k % tile_depth * 16, pair_up(part(k), part(k + 1)));
        }
  }

  template <class Shape>
  void product(int64_t K, const SplitRows& rows, Range range, const Bfloat* packed, Panels panels, const float* initial,
               Sink<float> sink, TileUnit& unit) const {
    asm volatile("" ::: "memory");  // GCC 12 does not know that loading a tile reads memory
    const auto multiply = terms_ == 3   ? &Amx::multiply<3, Shape::vectors>
                          : terms_ == 2 ? &Amx::multiply<2, Shape::vectors>
                                        : &Amx::multiply<1, Shape::vectors>;
    (this->*multiply)(K, rows, range, packed, panels, initial, sink, unit);
  }

 private:
  Bfloat* tile(Bfloat* packed, int64_t K, int64_t q, int64_t block, int term) const {
    return packed + ((q * tile_blocks(K) + block) * terms_ + term) * tile_size;
  }

  template <int terms, int vectors>
  void multiply(int64_t K, const SplitRows& rows, Range range, const Bfloat* packed, Panels panels, const float* initial,
                Sink<float> sink, TileUnit& unit) const {
    constexpr int64_t width = vectors * 16, most = 2 * tile_rows;
    alignas(64) float sums[most * width], part[most * width];
    const int64_t blocks = tile_blocks(K), vector_stride = blocks * terms * tile_size;
    for (int64_t i = 0; i < panels.count(); ++i) {
      const int64_t panel = panels.turn(i);
      for (int64_t first = range.begin; first < range.end; first += most) {
        const int count = int(range.end - first < most ? range.end - first : most), upper = count < 16 ? count : 16;
        unit.shape(upper, count - upper);
        for (int64_t k = 0; k == 0 || k < blocks; k += summed_blocks) {
          const Block block{rows.data + first * rows.stride + k * tile_depth,
                            packed + panel * vectors * vector_stride + k * terms * tile_size,
                            rows.stride,
                            rows.term_stride,
                            vector_stride,
                            blocks - k < summed_blocks ? blocks - k : summed_blocks};
          if (k == 0) {
            multiply_rows<terms, vectors>(block, count, initial ? initial + panel * width : nullptr, sums);
          } else {
            multiply_rows<terms, vectors>(block, count, nullptr, part);
            for (int64_t at = 0; at < count * width; at += 16)
              store(sums + at, load<Vec<float>>(sums + at) + load<Vec<float>>(part + at));
          }
        }
        sink.put(sink.taker, first, count, panel * vectors, reinterpret_cast<const Vec<float>*>(sums));
      }
    }
  }

  // Up to 32 rows times all vectors of a panel.
  template <int terms, int vectors>
  static void multiply_rows(const Block& panel, int count, const float* initial, float* sums) {
    for (int v = 0; v<vectors; v += count> tile_rows || v + 4 > vectors ? 2 : 4) {
      Block block = panel;
      block.tiles += v * block.vector_stride;
      const float* bias = initial ? initial + v * 16 : nullptr;
      if (count > tile_rows) square<terms>(block, bias, sums + v * 16, vectors * 16);
      else if (v + 4 <= vectors) line<terms, 4>(block, bias, sums + v * 16, vectors * 16);
      else line<terms, 2>(block, bias, sums + v * 16, vectors * 16);
    }
  }

  template <int terms>
  static void square(const Block& block, const float* bias, float* sums, int64_t width) {
    if (bias) {  // the same for every row
      _tile_loadd(0, bias, 0);
      _tile_loadd(1, bias + 16, 0);
      _tile_loadd(2, bias, 0);
      _tile_loadd(3, bias + 16, 0);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    multiply_square<terms>(block);
    _tile_stored(0, sums, width * 4);
    _tile_stored(1, sums + 16, width * 4);
    _tile_stored(2, sums + tile_rows * width, width * 4);
    _tile_stored(3, sums + tile_rows * width + 16, width * 4);
  }

  template <int terms, int vectors>
  static void line(const Block& block, const float* bias, float* sums, int64_t width) {
    if (bias) {
      _tile_loadd(0, bias, 0);
      _tile_loadd(1, bias + 16, 0);
      if constexpr (vectors == 4) {
        _tile_loadd(2, bias + 32, 0);
        _tile_loadd(3, bias + 48, 0);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (vectors == 4) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    multiply_line<terms, vectors>(block);
    _tile_stored(0, sums, width * 4);
    _tile_stored(1, sums + 16, width * 4);
    if constexpr (vectors == 4) {
      _tile_stored(2, sums + 32, width * 4);
      _tile_stored(3, sums + 48, width * 4);
    }
  }

  int terms_;
};

}  // namespace throughtime::TT_ISA
