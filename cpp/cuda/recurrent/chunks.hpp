// Chunks of steps, and the addresses of a tape's rows. A chunk's arrays are in order of timesteps, so that the rows of x, of
// the states and of the chunk's arrays have the same order in both directions.
#pragma once

#include "../step/stretch.hpp"
#include "../system/call.hpp"
#include "../system/grid.hpp"

namespace throughtime::cuda {

constexpr int64_t chunk_bytes = 64 << 20;  // a chunk's pre-activations in float32

inline int64_t chunk_steps(int64_t T, int64_t B, int64_t gates, int64_t H, const Call& call) {
  const int64_t fits = chunk_bytes / (B * gates * H * int64_t(sizeof(float)));
  const int64_t steps = call.chunk > 0 ? call.chunk : fits > 0 ? fits : 1;
  return steps < T ? steps : T;
}

// The steps of a chunk, and their timesteps.
struct Chunk {
  int64_t begin, end;  // steps
  int64_t t0;          // the first timestep
  int64_t count() const { return end - begin; }
};

template <class S>
Chunk chunk_of(const Recurrence<S>& p, int64_t begin, int64_t end) {
  return {begin, end, p.reverse ? p.T - end : begin};
}

// An array by timestep, that of timestep 0 at `data`, indexed by step.
template <class To, class S>
PerStep<To> by_step(const Recurrence<S>& p, To* data, int64_t stride) {
  return p.reverse ? PerStep<To>{data + (p.T - 1) * stride, -stride} : PerStep<To>{data, stride};
}

// The same for an array that begins with a chunk's first timestep.
template <class To, class S>
PerStep<To> by_step(const Recurrence<S>& p, To* data, int64_t stride, const Chunk& chunk) {
  return by_step(p, data - chunk.t0 * stride, stride);
}

template <class S>
int64_t state_size(const Recurrence<S>& p, int i) {
  return p.B * (i == 0 ? p.P : p.H);
}

// The states of successive timesteps, including the one before the first and the one after the last. rows[i] is state i before
// timestep t0, or in the reverse direction after it.
template <class S>
struct StateRows {
  S* rows[max_states];
  int64_t t0;

  S* before(const Recurrence<S>& p, int i, int64_t t) const {
    return rows[i] + (t - t0 + (p.reverse ? 1 : 0)) * state_size(p, i);
  }
  S* after(const Recurrence<S>& p, int i, int64_t t) const { return rows[i] + (t - t0 + (p.reverse ? 0 : 1)) * state_size(p, i); }
};

// The states of a tape that stores those of all timesteps; see step/windows.hpp.
template <class S>
StateRows<S> kept_states(const Recurrence<S>& p) {
  StateRows<S> kept{{}, 0};
  for (int i = 0; i < max_states && p.states[i]; ++i) kept.rows[i] = p.states[i] + (p.reverse ? state_size(p, i) : 0);
  return kept;
}

// The state after q steps, which the tape must store.
template <class S>
S* kept_state(const Recurrence<S>& p, int i, int64_t q) {
  return p.states[i] + kept_row(p, q) * state_size(p, i);
}

}  // namespace throughtime::cuda
