// Which states a tape keeps, and the windows in which the backward makes the others again. Kept at all timesteps: row t + 1 is
// the state after timestep t; the initial one is row 0, in the reverse direction row T + 1. Kept every so many steps: row n is
// the state after n * every steps, and the last row the final one.
#pragma once

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

// Whether the state after q of T steps is kept; `every` is 0 where all are.
TT_INLINE bool keeps_state(int64_t every, int64_t T, int64_t q) { return !every || q % every == 0 || q == T; }

// The row of a state kept every so many steps.
TT_INLINE int64_t checkpoint_row(int64_t every, int64_t q) { return (q + every - 1) / every; }

// The row of the state after q steps, which must be kept.
template <class S>
TT_INLINE int64_t kept_row(const Recurrence<S>& p, int64_t q) {
  if (p.every) return checkpoint_row(p.every, q);
  return p.reverse ? p.T + 1 - q : q;
}

// Steps between the kept states that windows start from: at least a chunk, since products of few rows are slow.
TT_INLINE int64_t window_steps(int64_t every, int64_t chunk) { return (chunk + every - 1) / every * every; }

// The first step of the window, or of the whole sequence where there is none (0), that ends before step `end`.
TT_INLINE int64_t window_begin(int64_t window, int64_t end) { return window ? (end - 1) / window * window : 0; }

// The first step of the chunk that ends before step `end` of steps from `first` on.
TT_INLINE int64_t chunk_begin(int64_t first, int64_t end, int64_t chunk) { return end > first + chunk ? end - chunk : first; }

}  // namespace throughtime::TT_ISA
