// Backward of layer_norm.hpp: each block computes a part of dweight and dbias, and a second kernel adds the parts. The order of
// all sums depends only on N, F and the number of multiprocessors.
#include "../system/launch.hpp"
#include "layer_norm_long_rows.hpp"
#include "layer_norm_walk.hpp"

#include <algorithm>

namespace throughtime::cuda {

namespace {

constexpr int small_rows_threads = 256;

// Each lane handles one column; warps stride over the parts.
template <class S>
TT_KERNEL TT_LAUNCH_BOUNDS(most_row_threads, 2) void add_parts(LayerNormBackward<S> p, const float* parts, int count) {
  const int lane = thread() % warp_size, warp = thread() / warp_size, warps = threads() / warp_size;
  const int64_t j = int64_t(block()) * warp_size + lane;
  float total = 0;
  if (j < 2 * p.F)
    for (int i = warp; i < count; i += warps) total += parts[i * 2 * p.F + j];
  float* const of_warps = reinterpret_cast<float*>(shared_memory());
  of_warps[thread()] = total;
  sync_block();
  if (warp > 0 || j >= 2 * p.F) return;
  for (int i = 1; i < warps; ++i) total += of_warps[i * warp_size + lane];
  from_float(total, j < p.F ? p.d_weight[j] : p.d_bias[j - p.F]);
}

template <class S>
void add_all_parts(const LayerNormBackward<S>& p, const float* parts, int count, Stream stream) {
  constexpr int threads = 512;
  const Launch shape{.blocks = int((2 * p.F + warp_size - 1) / warp_size), .threads = threads, .shared = threads * sizeof(float)};
  launch(stream, shape, add_parts<S>, p, parts, count);
}

// Blocks per multiprocessor, and stages per block. Blocks are reduced until each has two stages, or to one. No stages: the
// shared memory of a multiprocessor is too small for one.
struct Resident {
  int blocks, stages;
};

Resident plan_stages(int blocks, int64_t fixed_bytes, int64_t stage_bytes) {
  constexpr int64_t own = 1 << 10;  // bytes that the system reserves per block
  const auto fitting = [&](int blocks) {
    return int(std::min<int64_t>(((device().shared_bytes + own) / blocks - own - fixed_bytes) / stage_bytes, most_stages));
  };
  while (blocks > 1 && fitting(blocks) < 2) --blocks;
  return {blocks, std::max(0, fitting(blocks))};
}

// Returns false, with nothing done, if the rows are too long for the device's shared memory.
template <class S, int E, int V>
bool walk_rows(const LayerNormBackward<S>& p, const RowPlan& plan, int64_t blocks_by_force, Stream stream) {
  const int64_t array = Stages<Word<S, E>, V>::array_bytes(plan.threads), stage = array * (p.d_sum ? 3 : 2);
  const int64_t fixed = RowThreads::shared_bytes + array;
  const int wanted = E == 1 ? resident_threads : std::min(resident_threads, pieces_of_stage / V);
  const Resident resident = plan_stages(std::max(1, wanted / plan.threads), fixed, stage);
  if (resident.stages == 0) return false;
  const int64_t all = int64_t(device().multiprocessors) * resident.blocks;
  const int blocks = int(std::min(blocks_by_force ? blocks_by_force : all, p.N));
  Scratch scratch(stream);
  float* const parts = scratch.get<float>(2 * p.F * blocks);
  const Launch shape{.blocks = blocks, .threads = plan.threads, .shared = fixed + resident.stages * stage};
  launch(stream, shape, backward_rows<S, E, V>, p, parts, plan.width, resident.stages);
  add_all_parts(p, parts, blocks, stream);
  return true;
}

template <class S, int E>
void walk_long_rows(const LayerNormBackward<S>& p, int64_t blocks_by_force, Stream stream) {
  constexpr int threads = 128;
  launch(stream, {.blocks = int(p.N), .threads = most_row_threads, .shared = RowThreads::shared_bytes}, backward_long_rows<S, E>,
         p);
  const int across = int((p.F + threads - 1) / threads);
  const int64_t wanted = blocks_by_force ? blocks_by_force : int64_t(device().multiprocessors) * 2048 / threads / across + 1;
  const int stretches = int(std::min(wanted, p.N));
  Scratch scratch(stream);
  float* const parts = scratch.get<float>(2 * p.F * stretches);
  launch(stream, {.blocks = across, .blocks_y = stretches, .threads = threads}, sum_columns<S>, p, parts, stretches);
  add_all_parts(p, parts, stretches, stream);
}

}  // namespace

template <class S>
void layer_norm_backward(const LayerNormBackward<S>& p, int64_t blocks, Stream stream) {
  if (p.N == 0) {
    fill(p.d_weight, 0, size_t(p.F) * sizeof(S), stream);
    fill(p.d_bias, 0, size_t(p.F) * sizeof(S), stream);
    return;
  }
  const bool aligned = rows_are_aligned<S>(p.F, p.sum, p.weight, p.d_sum, p.d_normalised, p.d_x, p.d_branch);
  const RowPlan plan = plan_rows<S>(p.F, aligned, small_rows_threads);
  with_shape<S>(plan, [&](auto of) {
    using Shape = decltype(of);
    if constexpr (Shape::V > 0)
      if (walk_rows<S, Shape::E, Shape::V>(p, plan, blocks, stream)) return;
    walk_long_rows<S, Shape::E>(p, blocks, stream);
  });
}

template void layer_norm_backward(const LayerNormBackward<float>&, int64_t, Stream);
template void layer_norm_backward(const LayerNormBackward<BFloat16>&, int64_t, Stream);
template void layer_norm_backward(const LayerNormBackward<Float16>&, int64_t, Stream);

}  // namespace throughtime::cuda
