// The rules of each sequence at each step: lengths, resets and truncation as one byte of flags per sequence and step, and the
// timestep of a step. Steps count in processing order, timesteps in input order.
#pragma once

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

enum StepFlags : uint8_t {
  inactive = 1,  // past the sequence's length: the state stays unchanged
  reset = 2,     // starts an episode: the state before is zero
  truncate = 4,  // the state is carried, its gradient stops
};

template <class S>
struct Steps {
  const Recurrence<S>& p;
  int64_t truncation;  // the gradient stops every `truncation` steps; 0: never

  TT_INLINE bool ruled() const { return p.lengths || p.resets || truncation; }
  TT_INLINE int64_t time(int64_t step) const { return p.reverse ? p.T - 1 - step : step; }
  TT_INLINE int64_t length(int64_t b) const { return p.lengths ? p.lengths[b] : p.T; }

  TT_INLINE int flags(int64_t step, int64_t b) const {
    const int64_t t = time(step), n = length(b);
    if (t >= n) return inactive;
    const int64_t start = p.reverse ? t + 1 : t;  // the timestep whose reset flag applies to the state before this step
    const bool starts = p.resets && start < n && p.resets[start * p.B + b];
    const int64_t taken = p.reverse ? n - 1 - t : t;
    const bool stops = truncation && taken > 0 && taken % truncation == 0;
    return (starts ? reset : 0) | (stops ? truncate : 0);
  }
  // Whether this is the last step that sequence b takes.
  TT_INLINE bool last(int64_t step, int64_t b) const { return time(step) == (p.reverse ? 0 : length(b) - 1); }
};

// The state before a step as the step's products and its cell see it.
template <class V>
TT_INLINE V state_before(int flags, V state) {
  return flags & reset ? V{} : state;
}

// Whether the gradient of the state before a step leaves that step.
TT_INLINE bool stops_gradient(int flags) { return flags & (reset | truncate); }
// Whether the next step's recurrent product carries a gradient to h. If not, it is left out, never multiplied by zero.
TT_INLINE bool crosses(int flags_after) { return flags_after == 0; }

}  // namespace throughtime::TT_ISA
