// The left factors of one warp: those of its first rounds in registers for the whole launch, of the next in shared memory, of the
// rest in memory.
#pragma once

#include "persistent_plan.hpp"

namespace throughtime::cuda {

template <class S, int tiles, int terms>
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

  // For every round before `end`: right = take(round), then for each tile m multiply(m, weights (terms), right).
  template <class Take, class Multiply>
  TT_DEVICE void for_rounds(int end, const Take& take, const Multiply& multiply) const {
#pragma unroll
    for (int i = 0; i < resident; ++i)
      if (i < end) {
        const auto right = take(i);
#pragma unroll
        for (int m = 0; m < tiles; ++m) multiply(m, kept[i][m], right);
      }
#pragma unroll 1
    for (int i = resident; i < end; ++i) {
      const uint4* const from = i < last_near ? near : own;
      const int place = i < last_near ? i - resident : i;
      const auto right = take(i);
#pragma unroll
      for (int m = 0; m < tiles; ++m) {
        uint4 read[terms];
#pragma unroll
        for (int t = 0; t < terms; ++t) read[t] = at(from, place, m, t);
        multiply(m, read, right);
      }
    }
  }

 private:
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
