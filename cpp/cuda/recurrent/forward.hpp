// One layer and direction, forward: for each chunk, the product with x, then the steps.
#pragma once

#include "../system/side_stream.hpp"
#include "projection.hpp"
#include "run_steps.hpp"

namespace throughtime::cuda {

template <class C, class S>
class ForwardLoop {
 public:
  // Where the results go; see ForwardSteps.
  struct Targets {
    View<S> output{};
    PerStep<S> after[max_states];
    int64_t every = 0;
    PerStep<S> saved;
  };

  ForwardLoop(const Recurrence<S>& problem, const Call& of_call, Scratch& scratch)
      : p(problem), call(of_call), chunk(chunk_steps(p.T, p.B, C::gates, p.H, call)), projection(p, call, chunk, scratch) {
    for (int buffer = 0; buffer < (chunk < p.T ? 2 : 1); ++buffer) projected[buffer] = scratch.get<float>(chunk * step_size());
    for (int i = 0; i < C::states; ++i) carried[i] = scratch.get<float>(state_size(p, i));
    unit_rows = gather_unit_rows<C>(p, scratch, call.stream);
  }

  // Sets the state from which the next steps continue.
  void start(int i, const S* state) const { convert_array(p.B, state_size(p, i) / p.B, state, carried[i], call.stream); }

  // Runs steps `first` to `last` - 1. The product of the next chunk overlaps with the steps of this one. It is queued after
  // them, because a persistent launch needs all its multiprocessors at once.
  void advance(int64_t first, int64_t last, const Targets& targets) const {
    SideStream side(call.stream, last - first > chunk);
    Chunk now = chunk_at(first, last);
    projection.run(now, projected[0], call.stream);
    for (int buffer = 0; now.count() > 0; buffer ^= 1) {
      const Chunk next = chunk_at(now.end, last);
      if (next.count() > 0) side.follow();
      run_chunk(now, projected[buffer], targets);
      if (next.count() > 0) projection.run(next, projected[buffer ^ 1], side.stream());
      side.join();
      now = next;
    }
  }

 private:
  Chunk chunk_at(int64_t begin, int64_t last) const { return chunk_of(p, begin, begin + chunk < last ? begin + chunk : last); }
  int64_t step_size() const { return p.B * C::gates * p.H; }

  void run_chunk(const Chunk& now, const float* input, const Targets& targets) const {
    ForwardSteps<S> steps{};
    steps.p = p, steps.output = targets.output, steps.input = by_step(p, input, step_size(), now);
    steps.saved = targets.saved, steps.unit_rows = unit_rows, steps.every = targets.every;
    for (int i = 0; i < C::states; ++i) steps.carried[i] = carried[i], steps.after[i] = targets.after[i];
    steps.begin = now.begin, steps.end = now.end;
    run_steps<C>(steps, call);
  }

  const Recurrence<S> p;
  const Call call;
  int64_t chunk;
  Projection<C, S> projection;
  float* projected[2];  // (chunk, B, G, H): double buffer
  float* carried[max_states];
  const float* unit_rows;
};

template <class C, class S>
void run_forward(const Forward<S>& p, const Call& call) {
  Scratch scratch(call.stream);
  const ForwardLoop<C, S> loop(p, call, scratch);
  typename ForwardLoop<C, S>::Targets targets;
  targets.output = p.output;
  targets.every = p.every;
  if (p.saved) targets.saved = by_step<S>(p, p.saved, p.B * C::saved * p.H);
  const StateRows<S> kept = kept_states(p);
  for (int i = 0; i < C::states; ++i) {
    loop.start(i, kept_state(p, i, 0));
    if (p.every) targets.after[i] = {kept_state(p, i, 0), state_size(p, i)};
    else targets.after[i] = by_step<S>(p, kept.after(p, i, 0), state_size(p, i));
  }
  loop.advance(0, p.T, targets);
}

}  // namespace throughtime::cuda
