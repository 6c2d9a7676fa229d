// Operands as sums of bfloat16 terms. A float32 is the sum of up to three terms of 8 bits each, and the product of two such
// sums is the sum of their larger products in float32 (Henry, Tang and Heinecke 2019): six give float32's accuracy, three about
// 2^-16, one bfloat16's. Left operands are split rows; right operands are tiles of 32 x 16, with pairs of k adjacent.
#pragma once

#include "gemm.hpp"

namespace throughtime::TT_ISA {

using Bfloat = uint16_t;
typedef Bfloat Halves __attribute__((vector_size(32)));   // 16 numbers
typedef Bfloat Pairs __attribute__((vector_size(64)));    // 16 pairs
typedef uint32_t Words __attribute__((vector_size(64)));  // the bits of 16 floats
constexpr int64_t tile_rows = 16, tile_depth = 32, tile_size = 512;

TT_INLINE int64_t tile_blocks(int64_t K) { return ceil_div(K, tile_depth); }

TT_INLINE Words bits_of(Vec<float> value) {
  Words bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Subtracts the float with bits `kept` from each number, exactly; returns the upper halves of `kept`.
TT_INLINE Halves take_term(Words kept, Vec<float>& value) {
  Vec<float> term;
  __builtin_memcpy(&term, &kept, sizeof term);
  value -= term;
  return __builtin_convertvector(kept >> 16, Halves);
}

// Calls take(i, term i of each number), rounded; three terms represent any float32 above 2^-110. Values that would round to
// infinity are truncated. After an infinity the next term is NaN.
template <class Take>
TT_INLINE void for_terms(int terms, Vec<float> value, const Take& take) {
  constexpr uint32_t upper = 0xffff0000, size = 0x7fffffff, rounds_to_infinity = 0x7f7f8000;
  const auto rounded = [](Words bits) { return (bits + 0x7fff + ((bits >> 16) & 1)) & upper; };
  const Words bits = bits_of(value), cut = value != value ? bits | 0x400000 : bits;
  take(0, take_term((bits & size) < rounds_to_infinity ? rounded(bits) : cut & upper, value));
  if (terms > 1) take(1, take_term(rounded(bits_of(value)), value));
  if (terms > 2) take(2, __builtin_convertvector(bits_of(value) >> 16, Halves));
}

// Rows of K numbers split into terms, zero-padded to a multiple of the tile's depth. Layout: (blocks of 32 k, terms, rows, 32),
// in which a tile is contiguous from any first row, or (terms, rows, K).
struct SplitRows {
  Bfloat* data;
  int64_t stride, term_stride, block_stride;
  int terms;

  // An odd number of cache lines between terms or rows: powers of two would map to few cache sets.
  static SplitRows in_tiles(Bfloat* data, int64_t rows, int terms) {
    const int64_t term_stride = (rows | 1) * tile_depth;
    return {data, tile_depth, term_stride, terms * term_stride, terms};
  }
  static SplitRows in_lines(Bfloat* data, int64_t rows, int64_t K, int terms) {
    const int64_t stride = (tile_blocks(K) | 1) * tile_depth;
    return {data, stride, rows * stride, tile_depth, terms};
  }
  // Enough for either layout.
  static int64_t size(int64_t rows, int64_t K, int terms) { return terms * (rows | 1) * (tile_blocks(K) | 1) * tile_depth; }

  SplitRows from(int64_t row) const {
    SplitRows rest = *this;
    rest.data += row * stride;
    return rest;
  }

  TT_INLINE Bfloat* at(int64_t row, int64_t k) const {
    return data + row * stride + int64_t(uint64_t(k) / tile_depth) * block_stride + int64_t(uint64_t(k) % tile_depth);
  }

  TT_INLINE void put(int64_t row, int64_t k, Vec<float> value) const {
    Bfloat* const to = at(row, k);
    for_terms(terms, value, [&](int i, Halves term) __attribute__((always_inline)) { store(to + i * term_stride, term); });
  }

  // Null sets a row of zeros.
  void set(int64_t row, const float* from, int64_t K) const {
    for (int64_t k = 0; k < tile_blocks(K) * tile_depth; k += 16)
      put(row, k, from && k < K ? load_some<Vec<float>>(from + k, K - k) : Vec<float>{});
  }
};

// Interleaves two rows of 16 numbers into the pairs of a tile's row.
TT_INLINE Pairs pair_up(Halves upper, Halves lower) {
  return __builtin_shufflevector(upper, lower, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11,
                                 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// The sum of both numbers of each pair.
TT_INLINE Vec<float> sum_of_pairs(Pairs pairs) {
  Words bits;
  __builtin_memcpy(&bits, &pairs, sizeof bits);
  const Words first = bits << 16, second = bits & 0xffff0000;
  Vec<float> a, b;
  __builtin_memcpy(&a, &first, sizeof a);
  __builtin_memcpy(&b, &second, sizeof b);
  return a + b;
}

// The operand layout that Amx (amx.hpp) and Avx512Bf16 (avx512_bf16.hpp) share.
class SplitOperands {
 public:
  static constexpr bool copies_operands = true;
  using Weight = Bfloat;
  using RowBuffer = Bfloat;
  using Rows = SplitRows;
  using Columns = SplitRows;

  SplitOperands(const Host& host, bool in_tiles) : terms_(host.terms), in_tiles_(in_tiles) {}

  int64_t packed_size(int64_t K, int64_t vectors) const { return vectors * tile_blocks(K) * terms_ * tile_size; }
  int64_t row_buffer_size(int64_t rows, int64_t K) const { return SplitRows::size(rows, K, terms_); }
  SplitRows rows(Bfloat* row_buffer, int64_t count, int64_t K) const {
    return in_tiles_ ? SplitRows::in_tiles(row_buffer, count, terms_) : SplitRows::in_lines(row_buffer, count, K, terms_);
  }
  SplitRows columns(Bfloat* row_buffer, int64_t count, int64_t K) const { return rows(row_buffer, count, K); }
  static int64_t columns_padded(int64_t K) { return tile_blocks(K) * tile_depth; }
  SplitRows rows_of(const SplitRows& columns, const float**, int64_t begin, int64_t) const { return columns.from(begin); }

  // As in pack.hpp, in tiles: (vector, block of k, term, 16 pairs of k, 16 columns, 2).
  template <int>
  void pack_rows(const float* weight, int64_t K, Interleaved order, Range range, Bfloat* packed) const {
    for (int64_t q = range.begin; q < range.end; ++q)
      for (int64_t block = 0; block < tile_blocks(K); ++block) {
        Vec<float> pairs[3][16];  // per lane, then per pair
        for (int lane = 0; lane < 16; ++lane) {
          const int64_t row = order.row(q, lane);
          for (int half = 0; half < 2; ++half) {
            const int64_t k = block * tile_depth + half * 16;
            const Vec<float> value = row < 0 || k >= K ? Vec<float>{} : load_some<Vec<float>>(weight + row * K + k, K - k);
            for_terms(terms_, value,
                      [&](int i, Halves term) { store(reinterpret_cast<Bfloat*>(&pairs[i][lane]) + half * 16, term); });
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
        Halves upper[3];
        for_terms(terms_, value(k, q * 16), [&](int i, Halves term) { upper[i] = term; });
        for_terms(terms_, value(k + 1, q * 16), [&](int i, Halves term) {
          store(tile(packed, K, q, k / tile_depth, i) + k % tile_depth * 16, pair_up(upper[i], term));
        });
      }
  }

  // Packs `count` vectors of columns, from vector `first` on, of K rows to sum over; `row(r)` is the position of the r-th.
  // Calls seen(vector, term, pairs) for everything packed and closed() after each block of a tile's depth.
  template <class Row, class Seen, class Closed>
  void pack_split(const SplitRows& rows, int64_t K, int64_t first, int count, Bfloat* packed, const Row& row, const Seen& seen,
                  const Closed& closed) const {
    for (int64_t block = 0; block < tile_blocks(K); ++block) {
      for (int64_t pair = 0; pair < tile_depth / 2; ++pair) {
        const int64_t k = block * tile_depth + 2 * pair;
        for (int64_t q = 0; q < count; ++q) {
          const auto from = [&](int64_t k) { return k < K ? rows.at(row(k), (first + q) * 16) : nullptr; };
          const auto term = [&](const Bfloat* at, int i) { return at ? load<Halves>(at + i * rows.term_stride) : Halves{}; };
          const Bfloat* const upper = from(k);
          const Bfloat* const lower = from(k + 1);
          Bfloat* const to = tile(packed, K, q, block, 0) + pair * tile_depth;
          for (int i = 0; i < terms_; ++i) {
            const Pairs both = pair_up(term(upper, i), term(lower, i));
            store(to + i * tile_size, both);
            seen(q, i, both);
          }
        }
      }
      closed();
    }
  }

 protected:
  Bfloat* tile(Bfloat* packed, int64_t K, int64_t q, int64_t block, int term) const {
    return packed + ((q * tile_blocks(K) + block) * terms_ + term) * tile_size;
  }

  int terms_;
  bool in_tiles_;
};

}  // namespace throughtime::TT_ISA
