// The layout of a product's factors and result across a warp for the tensor cores (mma.m16n8k16). A tile of the left factor is
// 16 x 16, of the right factor 16 x 8 (16 units, 8 sequences), of the result 16 x 8.
#pragma once

#include "../system/bf16_terms.hpp"

namespace throughtime::cuda {

constexpr int tile = 16, columns = 8;
constexpr int result_floats = tile * columns;  // per tile; also its (unit, sequence) pairs

TT_DEVICE uint32_t word(uint16_t low, uint16_t high) { return uint32_t(high) << 16 | low; }

// The word of number (k, column) of a right factor among its tile's 64 words, each of numbers k and k + 1, k even.
TT_DEVICE int word_of(int k, int column) { return (column * 4 + k % 8 / 2) * 2 + k / 8; }

// A result is stored as 32 quadruples, one per lane, in an order without bank conflicts, both when quadruples are written and
// when numbers are read, units first.
TT_DEVICE int quadruple_of(int row, int pair) { return pair * 8 + ((row + 2 * pair) & 7); }
TT_DEVICE int quadruple_of_lane(int lane) { return quadruple_of(lane / 4, lane % 4); }
TT_DEVICE int number_of(int unit, int column) { return quadruple_of(unit % 8, column / 2) * 4 + column % 2 + unit / 8 * 2; }

TT_DEVICE uint4 quadruple(const float (&c)[4]) { return {bits_of(c[0]), bits_of(c[1]), bits_of(c[2]), bits_of(c[3])}; }

// A lane's part of a tile of the right factor.
template <int terms>
struct RightFactor {
  uint2 parts[terms];
};

// c += a b: the sum of those products of their terms that matter, smallest first.
template <class S, int terms>
TT_DEVICE void multiply_terms(float (&c)[4], const uint4 (&a)[terms], const uint2 (&b)[terms]) {
#pragma unroll
  for (int order = terms - 1; order >= 0; --order)
#pragma unroll
    for (int i = 0; i <= order; ++i) multiply_add<Factor<S>>(c, a[i], b[order - i]);
}

// Packs left factors in the order in which warps read them: (blocks, rounds, tiles, terms, threads) quadruples of words.
template <class S>
struct Packing {
  const S* weight;  // weight_hh (G H, H)
  int64_t H;
  int gates;          // of the recurrent product
  int tiles;          // per warp; if its block has more, another warp of the block has the others
  int rounds, warps;  // `warps` warps divide the other side's tiles
  int unit_tiles;     // per block
  uint4* packed;
};

// Number (row, k) of the left factor of a forward product: tile m is gate m % G of the block's unit tile m / G, multiplied with
// the h of tile round * warps + warp.
template <class S>
struct ForwardFactor {
  TT_DEVICE static float at(const Packing<S>& p, int block, int warp, int round, int m, int row, int k) {
    const int64_t unit = (int64_t(block) * p.unit_tiles + m / p.gates) * tile + row;
    const int64_t column = int64_t(round * p.warps + warp) * tile + k;
    return unit < p.H && column < p.H ? to_float(p.weight[(m % p.gates * p.H + unit) * p.H + column]) : 0.0f;
  }
};

// The same for a backward product: the transpose. row: a unit of tile round * warps + warp; k: a unit of the block, gate m % G.
template <class S>
struct BackwardFactor {
  TT_DEVICE static float at(const Packing<S>& p, int block, int warp, int round, int m, int row, int k) {
    return ForwardFactor<S>::at(p, block, warp, round, m, k, row);
  }
};

template <class S, int terms, template <class> class LeftFactor>
TT_KERNEL void pack(Packing<S> p) {
  const int lane = thread() % warp_size, warp = thread() / warp_size % p.warps, others = thread() / warp_size / p.warps * p.tiles;
  const int block_of = block() / p.rounds, round = block() % p.rounds;
  for (int m = 0; m < p.tiles; ++m) {
    uint32_t words[terms][4];
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8;
      Factor<S> low[terms], high[terms];
      split<S>(LeftFactor<S>::at(p, block_of, warp, round, others + m, row, k), low);
      split<S>(LeftFactor<S>::at(p, block_of, warp, round, others + m, row, k + 1), high);
      for (int t = 0; t < terms; ++t) words[t][i] = word(low[t].bits, high[t].bits);
    }
    for (int t = 0; t < terms; ++t)
      p.packed[((int64_t(block()) * p.tiles + m) * terms + t) * threads() + thread()] = {words[t][0], words[t][1], words[t][2],
                                                                                         words[t][3]};
  }
}

}  // namespace throughtime::cuda
