// Chunks of steps, whose arrays lie in order of timesteps, so that the rows of x, of the states and of a chunk's arrays follow
// one another the same way in both directions; and where a tape's rows lie.
#pragma once

#include "../step/stretch.hpp"
#include "../system/grid.hpp"

namespace throughtime::cuda {

constexpr int64_t chunk_bytes = 64 << 20;  // of the pre-activations of a chunk, in float32

inline int64_t chunk_steps(int64_t T, int64_t B, int64_t gates, int64_t H, const Call& call) {
  const int64_t fits = chunk_bytes / (B * gates * H * int64_t(sizeof(float)));
  const int64_t steps = call.chunk > 0 ? call.chunk : fits > 0 ? fits : 1;
  return steps < T ? steps : T;
}

// Steps of a chunk, and the timesteps that they are.
struct Chunk {
  int64_t begin, end;  // steps
  int64_t t0;          // the first of the timesteps
  int64_t count() const { return end - begin; }
};

template <class S>
Chunk chunk_of(const Recurrence<S>& p, int64_t begin, int64_t end) {
  return {begin, end, p.reverse ? p.T - end : begin};
}

// By step what lies by timestep, that of timestep 0 at `data`.
template <class To, class S>
PerStep<To> by_step(const Recurrence<S>& p, To* data, int64_t stride) {
  return p.reverse ? PerStep<To>{data + (p.T - 1) * stride, -stride} : PerStep<To>{data, stride};
}

// The same of an array that begins with a chunk's first timestep.
template <class To, class S>
PerStep<To> by_step(const Recurrence<S>& p, To* data, int64_t stride, const Chunk& chunk) {
  return by_step(p, data - chunk.t0 * stride, stride);
}

template <class S>
int64_t state_size(const Recurrence<S>& p, int i) {
  return p.B * (i == 0 ? p.P : p.H);
}

// States of successive timesteps, the one before the first and the one after the last among them: rows[i] is state i before or,
// in the reverse direction, after timestep t0.
template <class S>
struct StateRows {
  S* rows[max_states];
  int64_t t0;

  S* before(const Recurrence<S>& p, int i, int64_t t) const {
    return rows[i] + (t - t0 + (p.reverse ? 1 : 0)) * state_size(p, i);
  }
  S* after(const Recurrence<S>& p, int i, int64_t t) const { return rows[i] + (t - t0 + (p.reverse ? 0 : 1)) * state_size(p, i); }
};

// Those that a tape keeps of all timesteps; see step/windows.hpp.
template <class S>
StateRows<S> kept_states(const Recurrence<S>& p) {
  StateRows<S> kept{{}, 0};
  for (int i = 0; i < max_states && p.states[i]; ++i) kept.rows[i] = p.states[i] + (p.reverse ? state_size(p, i) : 0);
  return kept;
}

// The state after q steps, which the tape must keep.
template <class S>
S* kept_state(const Recurrence<S>& p, int i, int64_t q) {
  return p.states[i] + kept_row(p, q) * state_size(p, i);
}

}  // namespace throughtime::cuda
