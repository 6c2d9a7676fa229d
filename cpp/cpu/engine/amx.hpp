// The product on AMX: tiles of 16 rows of 32 bfloat16 numbers times tiles of 32 x 16, summed in float32.
#pragma once

#include <immintrin.h>

#include "bf16_terms.hpp"

namespace throughtime::TT_ISA {

// Longer sums are cut: over 4096 products, one running sum has an error of 5.3e-7, cut ones 2.4e-7.
constexpr int64_t summed_blocks = 16;

// A thread's tile registers: 0 to 3 hold sums, 4 (and 5) rows, the others the right operand. The unit also keeps the sums of
// the last block and passes them to their sink row by row between the products of the next block, which hides the latency of
// both.
class TileUnit : public Poll {
 public:
  explicit TileUnit(const Poll& poll) : Poll(poll) {}
  TileUnit(const TileUnit&) = delete;
  ~TileUnit() {
    if (upper_) _tile_release();
  }

  // Configures blocks of `upper` rows in an upper tile and `lower` in a lower one; `lower` may be 0.
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
    asm volatile("" ::"r"(&config) : "memory");  // GCC 12 assumes that only the first 8 bytes are read
    _tile_loadconfig(&config);
  }

  // Buffer for a block's sums (rows, width).
  float* sums() { return rooms_[turn_]; }
  float* part() { return rooms_[2]; }

  // Queues rows `first` to `first` + `rows` - 1 of `sums` for the sink, which gets some of them at each `advance`.
  void hand_over(Sink<float> sink, int64_t first, int rows, int64_t q, int64_t width) {
    finish();
    sink_ = sink, first_ = first, left_ = rows, q_ = q, width_ = width, next_ = sums();
    turn_ = 1 - turn_;
  }
  // Spreads the rows evenly over `calls` calls of `advance`.
  void pace(int64_t calls) { calls_ = calls > 0 ? calls : 1, count_ = left_, due_ = 0; }
  TT_INLINE void advance() {
    for (due_ += count_; due_ >= calls_; due_ -= calls_)
      if (left_ > 0) hand_row();
  }
  void finish() {
    while (left_ > 0) hand_row();
  }

  static constexpr int most_rows = 2 * tile_rows, most_vectors = 6;

 private:
  TT_INLINE void hand_row() {
    sink_.put(sink_.taker, first_, 1, q_, reinterpret_cast<const Vec<float>*>(next_));
    ++first_, --left_, next_ += width_;
  }

  int upper_ = 0, lower_ = 0, turn_ = 0;
  Sink<float> sink_;
  int64_t first_, q_, width_, left_ = 0, count_ = 0, calls_ = 1, due_ = 0;
  const float* next_;
  alignas(64) float rooms_[3][most_rows * most_vectors * 16];
};

// One block of sums, over a part of K.
struct Block {
  const Bfloat *rows, *tiles;         // the first row's first term; the first vector's first tile
  int64_t term_stride, block_stride;  // of the rows
  int64_t vector_stride;              // of the tiles
  int64_t blocks;                     // of that part
};

// Calls left(term) and right(term) to load, multiply() for each pair of terms, replacing one side at a time. The order of the
// pairs does not matter for the rounding, because the running sum already holds the large products of all earlier blocks.
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

constexpr int pairs_of(int terms) { return terms * (terms + 1) / 2; }

// Two tiles of rows times two vectors.
template <int terms>
TT_INLINE void multiply_square(const Block& b, TileUnit& unit) {
  for (int64_t k = 0; k < b.blocks; ++k)
    for_pairs<terms>(
        [&](int term) __attribute__((always_inline)) {
          const Bfloat* from = b.rows + term * b.term_stride + k * b.block_stride;
          _tile_loadd(4, from, 64);
          _tile_loadd(5, from + tile_size, 64);
        },
        [&](int term) __attribute__((always_inline)) {
          const Bfloat* from = b.tiles + (k * terms + term) * tile_size;
          _tile_loadd(6, from, 64);
          _tile_loadd(7, from + b.vector_stride, 64);
        },
        [&]() __attribute__((always_inline)) {
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
          unit.advance();
        });
}

// One tile of rows times up to four vectors; four sums hide the latency. Same products in the same order as above.
template <int terms, int vectors>
TT_INLINE void multiply_line(const Block& b, TileUnit& unit) {
  for (int64_t k = 0; k < b.blocks; ++k) {
    const Bfloat* tiles = b.tiles + k * terms * tile_size;
    for_pairs<terms>(
        [&](int term) __attribute__((always_inline)) { _tile_loadd(4, b.rows + term * b.term_stride + k * b.block_stride, 64); },
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
          unit.advance();
        });
  }
}

// The engine on AMX tiles; Fma in gemm.hpp is the one on vector registers.
class Amx : public SplitOperands {
 public:
  using Unit = TileUnit;
  static constexpr bool overlaps = true;
  static constexpr int64_t panels_at_once = 16, long_chunk = 512;
  explicit Amx(const Host& host) : SplitOperands(host, true) {}

  template <class Shape>
  void product(int64_t K, const SplitRows& rows, Range range, const Bfloat* packed, Panels panels, const float* initial,
               Sink<float> sink, TileUnit& unit) const {
    start_product<Shape>({0, K, K}, rows, range, packed, panels, initial, sink, unit);
    unit.finish();
  }

  // Part of a product over K: the sums from `begin` to `end`, each a multiple of a tile's depth, or K.
  struct Depth {
    int64_t begin, end, K;
  };

  // Leaves the last block's sums to the next product or to unit.finish(); the sink must live until then.
  template <class Shape>
  void start_product(Depth depth, const SplitRows& rows, Range range, const Bfloat* packed, Panels panels, const float* initial,
                     Sink<float> sink, TileUnit& unit) const {
    static_assert(Shape::vectors <= TileUnit::most_vectors);
    asm volatile("" ::: "memory");  // GCC 12 does not know that loading a tile reads memory
    const auto multiply = terms_ == 3   ? &Amx::multiply<3, Shape::vectors>
                          : terms_ == 2 ? &Amx::multiply<2, Shape::vectors>
                                        : &Amx::multiply<1, Shape::vectors>;
    const int64_t near = rows_near(tile_blocks(depth.end - depth.begin) * terms_);
    for (int64_t begin = range.begin; begin < range.end; begin += near)
      (this->*multiply)(depth, rows, {begin, range.end - begin < near ? range.end : begin + near}, packed, panels, initial, sink,
                        unit);
  }

 private:
  template <int terms, int vectors>
  void multiply(Depth depth, const SplitRows& rows, Range range, const Bfloat* packed, Panels panels, const float* initial,
                Sink<float> sink, TileUnit& unit) const {
    constexpr int64_t width = vectors * 16, most = TileUnit::most_rows;
    const int64_t begin = depth.begin / tile_depth, end = tile_blocks(depth.end),
                  vector_stride = tile_blocks(depth.K) * terms * tile_size;
    const int64_t products = (depth.end - depth.begin) * (range.end - range.begin) * width;
    for (int64_t i = 0; i < panels.count() && unit.goes_on(products); ++i) {
      const int64_t panel = panels.at(i);
      for (int64_t first = range.begin; first < range.end; first += most) {
        const int count = int(range.end - first < most ? range.end - first : most), upper = count < 16 ? count : 16;
        float* const sums = unit.sums();
        unit.shape(upper, count - upper);
        unit.pace((end - begin) * pairs_of(terms) * (count > tile_rows ? vectors / 2 : vectors / 4 + vectors % 4 / 2));
        for (int64_t k = begin; k == begin || k < end; k += summed_blocks) {
          const Block block{rows.data + first * tile_depth + k * rows.block_stride,
                            packed + panel * vectors * vector_stride + k * terms * tile_size,
                            rows.term_stride,
                            rows.block_stride,
                            vector_stride,
                            end - k < summed_blocks ? end - k : summed_blocks};
          if (k == begin) {
            multiply_rows<terms, vectors>(block, count, initial ? initial + panel * width : nullptr, sums, unit);
          } else {
            multiply_rows<terms, vectors>(block, count, nullptr, unit.part(), unit);
            for (int64_t at = 0; at < count * width; at += 16)
              store(sums + at, load<Vec<float>>(sums + at) + load<Vec<float>>(unit.part() + at));
          }
        }
        unit.hand_over(sink, first, count, panel * vectors, width);
      }
    }
  }

  // How many rows visit all panels before the next rows do: as many as stay in L2 while the panels stream past.
  static int64_t rows_near(int64_t tiles) {
    constexpr int64_t block = TileUnit::most_rows;
    const int64_t rows = 768 * 1024 / (tiles * 64 + 1) / block * block;
    return rows < block ? block : rows;
  }

  // Up to 32 rows times all vectors of a panel.
  template <int terms, int vectors>
  static void multiply_rows(const Block& panel, int count, const float* initial, float* sums, TileUnit& unit) {
    for (int v = 0; v<vectors; v += count> tile_rows || v + 4 > vectors ? 2 : 4) {
      Block block = panel;
      block.tiles += v * block.vector_stride;
      const float* bias = initial ? initial + v * 16 : nullptr;
      if (count > tile_rows) square<terms>(block, bias, sums + v * 16, vectors * 16, unit);
      else if (v + 4 <= vectors) line<terms, 4>(block, bias, sums + v * 16, vectors * 16, unit);
      else line<terms, 2>(block, bias, sums + v * 16, vectors * 16, unit);
    }
  }

  template <int terms>
  static void square(const Block& block, const float* bias, float* sums, int64_t width, TileUnit& unit) {
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
    multiply_square<terms>(block, unit);
    _tile_stored(0, sums, width * 4);
    _tile_stored(1, sums + 16, width * 4);
    _tile_stored(2, sums + tile_rows * width, width * 4);
    _tile_stored(3, sums + tile_rows * width + 16, width * 4);
  }

  template <int terms, int vectors>
  static void line(const Block& block, const float* bias, float* sums, int64_t width, TileUnit& unit) {
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
    multiply_line<terms, vectors>(block, unit);
    _tile_stored(0, sums, width * 4);
    _tile_stored(1, sums + 16, width * 4);
    if constexpr (vectors == 4) {
      _tile_stored(2, sums + 32, width * 4);
      _tile_stored(3, sums + 48, width * 4);
    }
  }
};

}  // namespace throughtime::TT_ISA
