// One sequence at one step, for cells that see all of its units at once: the part that both time loops share.
#pragma once

#include "../../kernels.hpp"
#include "../engine/vec.hpp"

namespace throughtime::TT_ISA {

template <class C, class S>
struct WholeRow {
  using V = Vec<S>;
  static constexpr int W = lanes<S>, values = unit_parameter_count<C>();

  int64_t H;
  const S* saved;    // (units, C::saved, lanes)
  const S* old;      // (H): the last state (c if there is one) before the step, or null: zeros
  const S* weights;  // (units, values, lanes)
  S* row_scratch;    // (units, C::row_scratch, lanes)

  static int64_t scratch_size(int64_t H) { return (H + W - 1) / W * C::row_scratch * W; }
  int64_t units() const { return H; }
  int64_t vectors() const { return (H + W - 1) / W; }
  TT_INLINE V keep(int64_t j, V value) const { return keep_some<S>(value, H - j * W); }
  TT_INLINE V a(int64_t j, int k) const { return load<V>(saved + (j * C::saved + k) * W); }
  TT_INLINE V w(int64_t j, int k) const { return load<V>(weights + (j * values + k) * W); }
  TT_INLINE V last_state(int64_t j) const { return old ? load_some<V>(old + j * W, H - j * W) : V{}; }
  TT_INLINE V scratch(int64_t j, int k) const { return load<V>(row_scratch + (j * C::row_scratch + k) * W); }
  TT_INLINE void set_scratch(int64_t j, int k, V value) const { store(row_scratch + (j * C::row_scratch + k) * W, value); }
  static S total(V value) {
    S sum = 0;
    for (int lane = 0; lane < W; ++lane) sum += value[lane];
    return sum;
  }
};

}  // namespace throughtime::TT_ISA
