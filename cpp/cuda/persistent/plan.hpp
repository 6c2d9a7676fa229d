// The division of work in a persistent launch. A block owns `tiles` tiles of 16 units and keeps their recurrent weights. A
// group of `size` blocks has all units, for `column_tiles` tiles of 8 sequences; groups share nothing. A warp takes every
// eighth tile of the product's other side (every fourth if two warps share one), its rounds. The weights of the first rounds
// are in registers, those of the next in shared memory, and the rest is read from memory (L2) at every step.
#pragma once

#include "../system/call.hpp"
#include "fragments.hpp"

namespace throughtime::cuda {

constexpr int persistent_warps = 8, persistent_threads = persistent_warps * warp_size;
constexpr int most_column_tiles = 16;

struct PersistentPlan {
  Mode mode;  // cluster or grid; stepwise: none fits
  int tiles;  // unit tiles per block
  int size;   // blocks per group
  int groups, column_tiles;
  int all_tiles;      // of units
  int rounds;         // per warp
  int shared_rounds;  // in shared memory, after those in registers
  bool streams;       // whether more rounds follow
  int64_t shared_bytes;

  int blocks() const { return size * groups; }
};

// Unit tiles per block. Two of split weights would not fit on the chip.
constexpr int most_tiles(int terms) { return terms == 1 ? 2 : 1; }

// Rounds of weights that fit in registers: in up to 128 of a thread's 255, fewer if each round has many sums.
constexpr int resident_rounds(int tiles_and_terms) {
  const int fit = (tiles_and_terms < 6 ? 128 : 112) / (4 * tiles_and_terms);
  return fit < 1 ? 1 : fit > 8 ? 8 : fit;
}

// A kernel's needs: bytes of shared memory without weights, fixed and per tile of columns; the number of warps that divide the
// other side's tiles, and the tiles of weights of each; and the number of groups that fit on the device at once.
struct Needs {
  int64_t fixed, per_column_tile;
  int warps, tiles;
  int groups = 0;
};

// needs_of(mode, plan): of the kernel with plan.tiles unit tiles per block.
template <class NeedsOf>
PersistentPlan plan_group(Mode mode, int tiles, int terms, int64_t B, int64_t H, const Device& on, const NeedsOf& needs_of) {
  const auto up = [](int64_t a, int64_t b) { return int((a + b - 1) / b); };
  PersistentPlan plan{.mode = Mode::stepwise, .tiles = tiles, .all_tiles = up(H, tile)};
  plan.size = up(plan.all_tiles, tiles);
  if (plan.size > on.multiprocessors || (mode == Mode::cluster && plan.size > on.largest_cluster)) return plan;
  const Needs needs = needs_of(mode, plan);
  const int fit = on.multiprocessors / plan.size, most_groups = needs.groups < fit ? needs.groups : fit;
  if (most_groups < 1) return plan;
  const int all_columns = up(B, columns);
  plan.column_tiles = up(all_columns, most_groups);
  if (plan.column_tiles > most_column_tiles) {
    if (mode == Mode::grid) return plan;
    plan.column_tiles = most_column_tiles;  // clusters are independent: the rest run later
  }
  plan.groups = up(all_columns, plan.column_tiles);
  plan.rounds = up(plan.all_tiles, needs.warps);
  plan.shared_bytes = needs.fixed + needs.per_column_tile * plan.column_tiles;
  const int64_t round_bytes = int64_t(needs.tiles) * terms * persistent_threads * int64_t(sizeof(uint4));
  const int64_t room = on.shared_bytes - plan.shared_bytes;
  if (room < 0) return plan;
  const int rest = plan.rounds - resident_rounds(needs.tiles * terms);
  plan.shared_rounds = rest <= 0 ? 0 : int64_t(rest) * round_bytes <= room ? rest : int(room / round_bytes);
  plan.streams = rest > plan.shared_rounds;
  plan.shared_bytes += plan.shared_rounds * round_bytes;
  plan.mode = mode;
  return plan;
}

// Prefers weights on the chip to weights from L2; then clusters, whose barrier is faster, to grids; then small blocks.
template <class NeedsOf>
PersistentPlan plan_persistent(const Call& call, int terms, int64_t B, int64_t H, const NeedsOf& needs_of) {
  PersistentPlan streaming{.mode = Mode::stepwise};
  if (call.mode == Mode::stepwise || B < 1) return streaming;
  Device on = device();
  if (call.multiprocessors) on.multiprocessors = call.multiprocessors;
  if (call.shared_bytes) on.shared_bytes = call.shared_bytes;
  for (const Mode mode : {Mode::cluster, Mode::grid})
    for (int tiles = 1; tiles <= most_tiles(terms); ++tiles) {
      if (call.mode != Mode::free && call.mode != mode) continue;
      const PersistentPlan plan = plan_group(mode, tiles, terms, B, H, on, needs_of);
      if (plan.mode == Mode::stepwise) continue;
      if (!plan.streams) return plan;
      if (streaming.mode == Mode::stepwise) streaming = plan;
    }
  return streaming;
}

}  // namespace throughtime::cuda
