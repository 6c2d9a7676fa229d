// The left factors of one warp: for the whole launch, those of its first rounds are in registers, those of the next in shared
// memory, the rest in memory.
#pragma once

#include "plan.hpp"

namespace throughtime::cuda {

// If `asks_all`, the right factors of all rounds with weights in registers are loaded before the first is polled.
template <class S, int tiles, int terms, bool asks_all>
class ResidentWeights {
 public:
  static constexpr int resident = resident_rounds(tiles * terms);

  // Copies the block's part into `shared`; a barrier of the block must follow.
  TT_DEVICE ResidentWeights(const uint4* packed, uint4* shared, const PersistentPlan& plan, int block_of_group)
      : own(packed + int64_t(block_of_group) * plan.rounds * round_size), near(shared), rounds(plan.rounds) {
    last_near = plan.rounds < resident + plan.shared_rounds ? plan.rounds : resident + plan.shared_rounds;
#pragma unroll
    for (int i = 0; i < resident; ++i)
#pragma unroll
      for (int m = 0; m < tiles; ++m)
#pragma unroll
        for (int t = 0; t < terms; ++t) kept[i][m][t] = i < rounds ? at(own, i, m, t) : uint4{0, 0, 0, 0};
    for (int i = resident; i < last_near; ++i)
      for (int m = 0; m < tiles; ++m)
        for (int t = 0; t < terms; ++t) at(near, i - resident, m, t) = at(own, i, m, t);
  }

  // For every round before `end`: right = ask(round), settle(round, right), then for each tile m
  // multiply(m, weights (terms), right).
  template <class Ask, class Settle, class Multiply>
  TT_DEVICE void for_rounds(int end, const Ask& ask, const Settle& settle, const Multiply& multiply) const {
    for_batch(0, end, ask, settle, [&](int i, const auto& right) {
#pragma unroll
      for (int m = 0; m < tiles; ++m) multiply(m, kept[i][m], right);
    });
#pragma unroll 1
    for (int begin = resident; begin < end; begin += resident)
      for_batch(begin, end, ask, settle, [&](int i, const auto& right) {
        const bool is_near = begin + i < last_near;
        const uint4* const from = is_near ? near : own;
        const int place = is_near ? begin + i - resident : begin + i;
#pragma unroll
        for (int m = 0; m < tiles; ++m) {
          uint4 read[terms];
#pragma unroll
          for (int t = 0; t < terms; ++t) read[t] = at(from, place, m, t);
          multiply(m, read, right);
        }
      });
  }

  // For every round before `end`: use(round, sums), the sums over all tiles m of weights times right(m, terms). Several rounds
  // are interleaved, because each product waits for the one before it in the same sum.
  template <class Right, class Use>
  TT_DEVICE void for_results(int end, const Right& right, const Use& use) const {
    add_batch(0, end, right, use, [&](int i, int m, int t) { return kept[i][m][t]; });
#pragma unroll 1
    for (int begin = resident; begin < end; begin += resident)
      add_batch(begin, end, right, use, [&](int i, int m, int t) {
        return begin + i < last_near ? at(near, begin + i - resident, m, t) : at(own, begin + i, m, t);
      });
  }

 private:
  template <class Right, class Use, class Left>
  TT_DEVICE static void add_batch(int begin, int end, const Right& right, const Use& use, const Left& left) {
    constexpr int abreast = tiles > 4 ? 1 : resident < 4 ? resident : tiles == 4 ? 2 : 4;  // as registers allow
#pragma unroll
    for (int first = 0; first < resident; first += abreast) {
      if (begin + first >= end) return;
      float sums[abreast][4] = {};
#pragma unroll
      for (int m = 0; m < tiles; ++m) {
        uint2 factors[terms];
        right(m, factors);
#pragma unroll
        for (int i = 0; i < abreast; ++i)
          if (first + i < resident && begin + first + i < end) {
            uint4 weights[terms];
#pragma unroll
            for (int t = 0; t < terms; ++t) weights[t] = left(first + i, m, t);
            multiply_terms<S>(sums[i], weights, factors);
          }
      }
#pragma unroll
      for (int i = 0; i < abreast; ++i)
        if (first + i < resident && begin + first + i < end) use(begin + first + i, sums[i]);
    }
  }

  template <class Ask, class Settle, class Use>
  TT_DEVICE static void for_batch(int begin, int end, const Ask& ask, const Settle& settle, const Use& use) {
#pragma unroll
    for (int first = 0; first < resident; first += at_once) {
      decltype(ask(0)) right[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i)
        if (first + i < resident && begin + first + i < end) right[i] = ask(begin + first + i);
#pragma unroll
      for (int i = 0; i < at_once; ++i)
        if (first + i < resident && begin + first + i < end) {
          settle(begin + first + i, right[i]);
          use(first + i, right[i]);
        }
    }
  }

  static constexpr int at_once = asks_all ? resident : 2;
  static constexpr int64_t round_size = int64_t(tiles) * terms * persistent_threads;

  template <class T>
  TT_DEVICE static T& at(T* from, int round, int m, int t) {
    return from[round * round_size + (m * terms + t) * persistent_threads + thread()];
  }

  uint4 kept[resident][tiles][terms];
  const uint4* own;
  uint4* near;
  int rounds, last_near;
};

}  // namespace throughtime::cuda
