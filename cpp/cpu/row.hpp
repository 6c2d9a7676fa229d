// One sequence at one step, for cells that see all of its units at once: what both time loops' rows have.
#pragma once

#include "../kernels.hpp"
#include "vec.hpp"

namespace throughtime::TT_ISA {

template <class C, class S>
struct WholeRow {
  using V = Vec<S>;
  static constexpr int L = lanes<S>, values = unit_values<C>();

  int64_t H;
  const S* saved;    // (units, C::saved, lanes)
  const S* old;      // (H): the last of the states before the step, or null: zeros
  const S* weights;  // (units, values, lanes)
  S* notes;          // (units, C::notes, lanes)

  static int64_t notes_size(int64_t H) { return (H + L - 1) / L * C::notes * L; }
  int64_t units() const { return H; }
  int64_t vectors() const { return (H + L - 1) / L; }
  TT_INLINE V keep(int64_t j, V value) const { return keep_some<S>(value, H - j * L); }
  TT_INLINE V a(int64_t j, int k) const { return load<V>(saved + (j * C::saved + k) * L); }
  TT_INLINE V w(int64_t j, int k) const { return load<V>(weights + (j * values + k) * L); }
  TT_INLINE V last_state(int64_t j) const { return old ? load_some<V>(old + j * L, H - j * L) : V{}; }
  TT_INLINE V note(int64_t j, int k) const { return load<V>(notes + (j * C::notes + k) * L); }
  TT_INLINE void set_note(int64_t j, int k, V value) const { store(notes + (j * C::notes + k) * L, value); }
  static S total(V value) {
    S sum = 0;
    for (int lane = 0; lane < L; ++lane) sum += value[lane];
    return sum;
  }
};

}  // namespace throughtime::TT_ISA
