// What happens to each sequence at each step: lengths, resets and truncation become one byte per sequence and step, and
// which timestep a step means. Steps count in processing order, timesteps in the input's.
#pragma once

#include "kernels.hpp"
#include "number.hpp"

namespace throughtime::TT_ISA {

enum Rule : uint8_t {
  inactive = 1,  // past the sequence's length: the state stands still
  fresh = 2,     // starts an episode: the state before is zero
  cut = 4,       // the state is carried, its gradient stops
};

template <class S>
struct Steps {
  const Recurrence<S>& p;
  int64_t truncate;

  TT_INLINE bool ruled() const { return p.lengths || p.resets || truncate; }
  TT_INLINE int64_t time(int64_t step) const { return p.reverse ? p.T - 1 - step : step; }
  TT_INLINE int64_t length(int64_t b) const { return p.lengths ? p.lengths[b] : p.T; }

  TT_INLINE int rule(int64_t step, int64_t b) const {
    const int64_t t = time(step), n = length(b);
    if (t >= n) return inactive;
    const int64_t start = p.reverse ? t + 1 : t;  // the timestep whose reset flag concerns the state before this step
    const bool starts = p.resets && start < n && p.resets[start * p.B + b];
    const int64_t taken = p.reverse ? n - 1 - t : t;
    const bool stops = truncate && taken > 0 && taken % truncate == 0;
    return (starts ? fresh : 0) | (stops ? cut : 0);
  }
  // Whether this is the last step that sequence b takes.
  TT_INLINE bool last(int64_t step, int64_t b) const { return time(step) == (p.reverse ? 0 : length(b) - 1); }
};

}  // namespace throughtime::TT_ISA
