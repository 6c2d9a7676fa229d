// Grids over rows and columns: one thread per column of a row; neighbouring threads have neighbouring columns.
#pragma once

#include "launch.hpp"

namespace throughtime::cuda {

constexpr int most_block_threads = 256;

TT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads of a block for that many columns: whole warps, at most most_block_threads.
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
