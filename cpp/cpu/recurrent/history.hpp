// Where the state after q steps lies, and what the cell saved at a step. States that the tape does not keep (step/windows.hpp)
// lie in a window of scratch, used again and again.
#pragma once

#include "../../cells/cell.hpp"
#include "../../step/rules.hpp"
#include "../../step/windows.hpp"

namespace throughtime::TT_ISA {

// The place, within a step, of what is saved of vector j of sequence b. A panel of tiles visits all sequences of its units in
// turn, so these are neighbours; for a cell that sees whole rows, the vectors of a row are.
template <class C>
TT_INLINE int64_t saved_offset(int64_t b, int64_t j, int64_t B, int64_t vectors) {
  return C::phases == Phases::rows ? b * vectors + j : j * B + b;
}

template <class S>
struct History {
  const Recurrence<S>& p;
  int64_t saved_size;               // of one step, all sequences
  int64_t checkpoint_interval = 0;  // steps between the kept states that this loop starts from, a multiple of `every`; 0: all
                                    // are kept
  S* window[max_states] = {};
  int64_t window_rows = 0;
  S* saved_window = nullptr;  // where the tape has no saved values
  int64_t saved_rows = 0;
  bool recompute = false;  // the tape is only read: every state goes to the window

  int64_t width(int i) const { return i == 0 ? p.P : p.H; }

  S* state(int i, int64_t q) const {
    const int64_t size = p.B * width(i);
    if (keeps_state(checkpoint_interval, p.T, q)) return p.states[i] + kept_row(p, q) * size;
    return window[i] + q % window_rows * size;
  }

  // Where the state after q steps goes. Row 0 of a window is free, and the row of the last state.
  S* after(int i, int64_t q) const {
    return recompute && checkpoint_interval ? window[i] + q % window_rows * p.B * width(i) : state(i, q);
  }

  bool keeps() const { return p.saved || saved_window; }

  // Null where nothing is saved.
  S* saved(const Steps<S>& steps, int64_t s) const {
    if (p.saved) return p.saved + steps.time(s) * saved_size;
    return saved_window ? saved_window + s % saved_rows * saved_size : nullptr;
  }
};

}  // namespace throughtime::TT_ISA
