// Addresses of the state after q steps and of the values saved at a step. States that the tape does not store
// (step/windows.hpp) lie in a reused window of scratch memory.
#pragma once

#include "../../cells/cell.hpp"
#include "../../step/rules.hpp"
#include "../../step/windows.hpp"

namespace throughtime::TT_ISA {

// The position, within a step, of the values saved for vector j of sequence b. A panel of tiles visits all sequences of its
// units in order, so these are adjacent; for a whole-row cell, the vectors of a row are.
template <class C>
TT_INLINE int64_t saved_offset(int64_t b, int64_t j, int64_t B, int64_t vectors) {
  return C::phases == Phases::rows ? b * vectors + j : j * B + b;
}

template <class S>
struct History {
  const Recurrence<S>& p;
  int64_t saved_size;               // of one step, all sequences
  int64_t checkpoint_interval = 0;  // steps between the stored states to start from, a multiple of `every`; 0: all are stored
  S* window[max_states] = {};
  int64_t window_rows = 0;
  S* saved_window = nullptr;  // if the tape has no saved values
  int64_t saved_rows = 0;
  bool recompute = false;  // the tape is only read: every state goes to the window

  int64_t width(int i) const { return i == 0 ? p.P : p.H; }

  S* state(int i, int64_t q) const {
    const int64_t size = p.B * width(i);
    if (keeps_state(checkpoint_interval, p.T, q)) return p.states[i] + kept_row(p, q) * size;
    return window[i] + q % window_rows * size;
  }

  // Where to write the state after q steps. States already on the tape go to free rows of a window: row 0, the last state's.
  S* after(int i, int64_t q) const {
    return recompute && checkpoint_interval ? window[i] + q % window_rows * p.B * width(i) : state(i, q);
  }

  bool keeps() const { return p.saved || saved_window; }

  // Null if nothing is saved.
  S* saved(const Steps<S>& steps, int64_t s) const {
    if (p.saved) return p.saved + steps.time(s) * saved_size;
    return saved_window ? saved_window + s % saved_rows * saved_size : nullptr;
  }
};

}  // namespace throughtime::TT_ISA
