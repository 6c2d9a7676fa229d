// Grids over rows and columns: a thread for each column of a row, columns side by side.
#pragma once

#include "launch.hpp"

namespace throughtime::cuda {

constexpr int most_block_threads = 256;  // of a block

TT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads for so many columns: whole warps, no more than a block may have.
inline int threads_for(int64_t columns) {
  return columns < most_block_threads ? int(ceil_div(columns, warp_size)) * warp_size : most_block_threads;
}

inline Launch over(int64_t rows, int64_t columns) {
  const int threads = threads_for(columns);
  return {int(rows * ceil_div(columns, threads)), 1, threads};
}

struct GridPosition {
  int64_t row, column;  // the column may lie beyond the last one
};

TT_DEVICE GridPosition grid_position(int64_t columns) {
  const int tiles = int(ceil_div(columns, threads()));
  return {block() / tiles, int64_t(block() % tiles) * threads() + thread()};
}

}  // namespace throughtime::cuda
