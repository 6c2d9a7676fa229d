// One sequence at one step, for cells that see all its units at once: the common part of the rows of both time loops. A block
// processes a row, its threads stride over the units, and all of them take part in a total.
#pragma once

#include "../system/grid.hpp"
#include "../system/reduce.hpp"

namespace throughtime::cuda {

template <class C>
struct WholeRow {
  using V = float;

  int64_t H;
  const float* unit_rows;  // (values, H)
  float* own_scratch;      // (C::row_scratch, H)

  TT_DEVICE int64_t units() const { return H; }
  TT_DEVICE int64_t vectors() const { return ceil_div(H, threads()); }
  TT_DEVICE int64_t unit(int64_t j) const { return j * threads() + thread(); }
  TT_DEVICE bool has(int64_t j) const { return unit(j) < H; }
  TT_DEVICE float keep(int64_t j, float value) const { return has(j) ? value : 0.0f; }
  TT_DEVICE float w(int64_t j, int k) const { return has(j) ? unit_rows[k * H + unit(j)] : 0.0f; }
  TT_DEVICE float scratch(int64_t j, int k) const { return has(j) ? own_scratch[k * H + unit(j)] : 0.0f; }
  TT_DEVICE void set_scratch(int64_t j, int k, float value) const {
    if (has(j)) own_scratch[k * H + unit(j)] = value;
  }
  TT_DEVICE static float total(float value) { return over_block(value, reinterpret_cast<float*>(shared_memory()), Add()); }
};

// One block per sequence.
inline Launch over_sequences(int64_t B, int64_t units) {
  const int threads = threads_for(units);
  return {int(B), 1, threads, int64_t(threads / warp_size * sizeof(double))};
}

}  // namespace throughtime::cuda
