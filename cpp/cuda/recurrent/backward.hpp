// One layer and direction, backward, chunk by chunk from the end. The steps of a chunk compute its delta; products turn it into
// the gradients of the input and the parameters while the steps of the next chunk run. States or saved values that the tape
// does not store are recomputed.
#pragma once

#include "chunk_gradients.hpp"
#include "forward.hpp"
#include "recomputed_gates.hpp"

namespace throughtime::cuda {

template <class C, class S>
class BackwardLoop {
  static constexpr int G = C::gates, R = C::recurrent, N = C::states, values = unit_parameter_count<C>();
  static constexpr bool two_products = C::phases == Phases::two_products;

 public:
  BackwardLoop(const Backward<S>& problem, const Call& of_call)
      : p(problem),
        call(of_call),
        scratch(call.stream),
        chunk_size(chunk_steps(p.T, p.B, G, p.H, call)),
        states(kept_states<S>(p)),
        products(p, call.terms, chunk_size, scratch),
        side(call.stream, chunk_size < p.T) {
    for (int i = 0; i < N; ++i) carried[i] = scratch.get<float>(state_size<S>(p, i));
    for (int buffer = 0; buffer < (chunk_size < p.T ? 2 : 1); ++buffer) deltas[buffer] = make_deltas();
    unit_rows = gather_unit_rows<C, S>(p, scratch, call.stream);
    if (p.saved) saved = by_step<S>(p, p.saved, saved_size());
    if (p.every) prepare_windows();
    else if (C::saved && !p.saved) recompute.emplace(p, call, chunk_size, unit_rows, scratch);
  }

  void run() {
    for (int i = 0; i < N; ++i) receive_final(i);
    for (int64_t end = p.T; end > 0;) {
      const int64_t first = window_begin(window, end);
      if (p.every) run_window(first, end);
      for (; end > first; end = chunk_begin(first, end, chunk_size))
        run_chunk(chunk_of<S>(p, chunk_begin(first, end, chunk_size), end));
    }
    finish_pending();
    for (int i = 0; i < N && p.d_initial[0]; ++i)
      convert_array(p.B, state_size<S>(p, i) / p.B, carried[i], p.d_initial[i], call.stream);
    products.finish(call.stream);
  }

 private:
  int64_t saved_size() const { return p.B * C::saved * p.H; }
  bool masks_hidden() const { return p.lengths || p.resets; }

  Deltas<S> make_deltas() {
    const int64_t rows = chunk_size * p.B;
    Deltas<S> made{};
    made.x = scratch.get<S>(rows * G * p.H);
    made.r = C::split ? scratch.get<S>(rows * R * p.H) : made.x;
    if constexpr (two_products) made.second = scratch.get<S>(rows * p.P), made.middle = scratch.get<S>(rows * p.H);
    if (values > 0 && products.asks_weights()) made.unit = scratch.get<float>(rows * values * p.H);
    if (masks_hidden()) made.gathered = scratch.get<S>(rows * p.P);
    return made;
  }

  // States that the tape lacks are recomputed in windows.
  void prepare_windows() {
    window = window_steps(p.every, chunk_size);
    if (window > p.T) window = p.T;
    for (int i = 0; i < N; ++i) states.rows[i] = scratch.get<S>((window + 1) * state_size<S>(p, i));
    if (C::saved && !p.saved) saved_window = scratch.get<S>(window * saved_size());
    forward.emplace(p, call, scratch);
  }

  void run_window(int64_t first, int64_t end) {
    finish_pending();  // it reads the last window's states
    const Chunk steps = chunk_of<S>(p, first, end);
    typename ForwardLoop<C, S>::Targets targets;
    states.t0 = steps.t0;
    if (saved_window) targets.saved = saved = by_step<S>(p, saved_window, saved_size(), steps);
    for (int i = 0; i < N; ++i) {
      const S* kept = kept_state<S>(p, i, first);
      const int64_t size = state_size<S>(p, i), t = p.reverse ? p.T - 1 - first : first;
      copy(states.before(p, i, t), kept, size_t(size) * sizeof(S), call.stream);
      forward->start(i, kept);
      targets.after[i] = by_step<S>(p, states.after(p, i, 0), size);
    }
    forward->advance(first, end, targets);
  }

  void receive_final(int i) const {
    const int64_t size = state_size<S>(p, i);
    if (p.d_final[i]) convert_array(p.B, size / p.B, p.d_final[i], carried[i], call.stream);
    else fill(carried[i], 0, size_t(size) * sizeof(float), call.stream);
  }

  // Its products stay pending until the next chunk's steps are queued: queued earlier, they would occupy multiprocessors that a
  // persistent launch needs all at once.
  void run_chunk(const Chunk& chunk) {
    Deltas<S>& own = deltas[buffer];
    side.join();  // its products read these buffers
    const Deltas<S>* const before = pending;
    if (before) side.follow();
    own.chunk = chunk, own.hidden = find_hidden(own);
    if (recompute) saved = recompute->run(chunk, own.hidden, states);
    run_steps<C>(steps_of(own), call);
    if (before) products.run(*before, side.stream());
    pending = &own, buffer = deltas[1].x ? buffer ^ 1 : 0;
  }

  void finish_pending() {
    side.join();
    if (pending) products.run(*pending, call.stream);
    pending = nullptr;
  }

  BackwardSteps<S> steps_of(const Deltas<S>& own) const {
    const Chunk& chunk = own.chunk;
    BackwardSteps<S> steps{};
    steps.p = p, steps.begin = chunk.begin, steps.end = chunk.end;
    for (int i = 0; i < N; ++i) {
      steps.before[i] = by_step<const S>(p, states.before(p, i, 0), state_size<S>(p, i));
      steps.after[i] = by_step<const S>(p, states.after(p, i, 0), state_size<S>(p, i));
      steps.carried[i] = carried[i];
    }
    steps.saved = {saved.data, saved.stride};
    steps.delta_x = by_step(p, own.x, p.B * G * p.H, chunk);
    if (C::split) steps.delta_r = by_step(p, own.r, p.B * R * p.H, chunk);
    if (two_products) {
      steps.delta_second = by_step(p, own.second, p.B * p.P, chunk);
      steps.middle = by_step(p, own.middle, p.B * p.H, chunk);
    }
    if (own.unit) steps.delta_unit = by_step(p, own.unit, p.B * values * p.H, chunk);
    steps.unit_rows = unit_rows;
    return steps;
  }

  // h before each step; rows of inactive steps and of starts of episodes are zero, whatever they hold.
  const S* find_hidden(const Deltas<S>& own) const {
    const View<const S> all{states.before(p, 0, 0), p.B * p.P, p.P};
    if (!masks_hidden()) return all.data + own.chunk.t0 * all.time;
    const ChunkRows<S> rows{p, own.chunk.t0, p.P, inactive | reset};
    launch(call.stream, over(own.chunk.count() * p.B, p.P), gather_rows<S>, rows, all, own.gathered);
    return own.gathered;
  }

  const Backward<S> p;
  const Call call;
  Scratch scratch;
  int64_t chunk_size, window = 0;
  StateRows<S> states;  // the tape's, or the window's
  PerStep<S> saved;
  Deltas<S> deltas[2] = {};  // double buffer
  const Deltas<S>* pending = nullptr;
  int buffer = 0;
  ChunkGradients<C, S> products;
  std::optional<ForwardLoop<C, S>> forward;        // if the tape lacks states
  std::optional<RecomputedGates<C, S>> recompute;  // if it lacks only saved values
  S* saved_window = nullptr;
  float* carried[max_states];
  const float* unit_rows;
  SideStream side;  // the last member: destroyed first
};

}  // namespace throughtime::cuda
