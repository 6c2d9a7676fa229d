// The states that a tape stores, and the windows in which the backward recomputes the others. Without checkpoints (`every` is
// 0), row t + 1 is the state after timestep t, and the initial state is row 0, or row T + 1 in the reverse direction. With
// checkpoints, row n is the state after n * every steps, and the last row is the final state.
#pragma once

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

// Whether the state after q of T steps is stored.
TT_INLINE bool keeps_state(int64_t every, int64_t T, int64_t q) { return !every || q % every == 0 || q == T; }

// The row of the checkpoint after q steps.
TT_INLINE int64_t checkpoint_row(int64_t every, int64_t q) { return (q + every - 1) / every; }

// The row of the state after q steps, which must be stored.
template <class S>
TT_INLINE int64_t kept_row(const Recurrence<S>& p, int64_t q) {
  if (p.every) return checkpoint_row(p.every, q);
  return p.reverse ? p.T + 1 - q : q;
}

// Steps between the stored states from which windows start: at least a chunk, because products of few rows are slow.
TT_INLINE int64_t window_steps(int64_t every, int64_t chunk) { return (chunk + every - 1) / every * every; }

// The first step of the window that ends before step `end`; with no windows (0), step 0.
TT_INLINE int64_t window_begin(int64_t window, int64_t end) { return window ? (end - 1) / window * window : 0; }

// The first step, `first` or later, of the chunk that ends before step `end`.
TT_INLINE int64_t chunk_begin(int64_t first, int64_t end, int64_t chunk) { return end > first + chunk ? end - chunk : first; }

}  // namespace throughtime::TT_ISA
