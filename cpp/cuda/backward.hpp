// One layer and direction, backward. Chunk by chunk from the end: the steps give the chunk's delta (the gradient of the
// pre-activations), products take it into dx, dW_ih, dW_hh. What the tape does not hold, states or saved values, is computed
// again on the way.
#pragma once

#include "forward.hpp"
#include "norms.hpp"
#include "saved_again.hpp"
#include "side.hpp"

#include <optional>

namespace throughtime::cuda {

template <class C, class S>
class BackwardLoop {
  static constexpr int G = C::gates, R = C::recurrent, N = C::states, values = unit_values<C>();
  static constexpr bool two_products = C::phases == Phases::two_products;

 public:
  BackwardLoop(const Backward<S>& problem, const Call& of_call)
      : p(problem),
        call(of_call),
        scratch(call.queue),
        chunk_size(chunk_steps(p.T, p.B, G, p.H, call)),
        states(kept_states<S>(p)),
        inputs(G * p.H, p.I, p.d_weights[weight_ih], scratch),
        recurrent(R * p.H, p.P, p.d_weights[weight_hh], scratch, C::split ? nullptr : &inputs) {
    const int64_t rows = chunk_size * p.B;
    x_stride = masks_x() ? 0 : matrix_stride(p.x, p.B, p.I);
    input_stride = p.lengths ? 0 : matrix_stride(p.d_input, p.B, p.I);
    delta_x = scratch.get<S>(rows * inputs.rows);
    delta_r = C::split ? scratch.get<S>(rows * recurrent.rows) : delta_x;
    for (int i = 0; i < N; ++i) carried[i] = scratch.get<float>(state_size<S>(p, i));
    if (asks_weights() && !x_stride) x_gathered = scratch.get<S>(rows * p.I);
    if (masks_hidden()) hidden_gathered = scratch.get<S>(rows * p.P);
    if (p.d_input.data && !input_stride) d_x = scratch.get<float>(rows * p.I);
    unit_rows = gather_unit_rows<C, S>(p, scratch, call.queue);
    if constexpr (two_products) {
      delta_second = scratch.get<S>(rows * p.P);
      middle = scratch.get<S>(rows * p.H);
      second.emplace(p.P, p.H, second_part<C>(p.d_weights, p, weight_hh), scratch);
    }
    if (values > 0 && asks_weights()) {
      delta_unit = scratch.get<float>(rows * values * p.H);
      unit_sums = scratch.get<float>(values * p.H);
    }
    if (p.saved) saved = by_step<S>(p, p.saved, saved_size());
    if (p.every) prepare_windows();
    else if (C::saved && !p.saved) again.emplace(p, call, chunk_size, unit_rows, scratch);
  }

  void run() {
    for (int i = 0; i < N; ++i) receive_final(i);
    for (int64_t end = p.T; end > 0;) {
      const int64_t first = p.every ? (end - 1) / window * window : 0;
      if (p.every) run_window(first, end);
      for (; end > first; end = end > first + chunk_size ? end - chunk_size : first)
        run_chunk(chunk_of<S>(p, end > first + chunk_size ? end - chunk_size : first, end));
    }
    for (int i = 0; i < N && p.d_initial[0]; ++i)
      convert_array(p.B, state_size<S>(p, i) / p.B, carried[i], p.d_initial[i], call.queue);
    if (asks_weights()) finish_weights();
  }

 private:
  bool asks_weights() const { return p.d_weights[weight_ih] != nullptr; }
  bool masks_x() const { return p.lengths != nullptr; }
  bool masks_hidden() const { return p.lengths || p.resets; }
  bool coarse() const { return call.terms == 1; }
  int64_t saved_size() const { return p.B * C::saved * p.H; }

  // States that were not kept are made again in windows of at least a chunk, for products of few rows are slow.
  void prepare_windows() {
    window = ceil_div(chunk_size, p.every) * p.every;
    if (window > p.T) window = p.T;
    for (int i = 0; i < N; ++i) states.rows[i] = scratch.get<S>((window + 1) * state_size<S>(p, i));
    if (C::saved && !p.saved) saved_window = scratch.get<S>(window * saved_size());
    forward.emplace(p, call, scratch);
  }

  void run_window(int64_t first, int64_t end) {
    const Chunk steps = chunk_of<S>(p, first, end);
    typename ForwardLoop<C, S>::Targets targets;
    states.t0 = steps.t0;
    if (saved_window) targets.saved = saved = by_step<S>(p, saved_window, saved_size(), steps);
    for (int i = 0; i < N; ++i) {
      const S* kept = kept_state<S>(p, i, first);
      const int64_t size = state_size<S>(p, i), t = p.reverse ? p.T - 1 - first : first;
      copy(states.before(p, i, t), kept, size_t(size) * sizeof(S), call.queue);
      forward->start(i, kept);
      targets.after[i] = by_step<S>(p, states.after(p, i, 0), size);
    }
    forward->advance(first, end, targets);
  }

  void receive_final(int i) const {
    const int64_t size = state_size<S>(p, i);
    if (p.d_final[i]) convert_array(p.B, size / p.B, p.d_final[i], carried[i], call.queue);
    else fill(carried[i], 0, size_t(size) * sizeof(float), call.queue);
  }

  void run_chunk(const Chunk& chunk) {
    const S* hidden = find_hidden(chunk);
    if (again) saved = again->run(chunk, hidden, states);
    run_steps<C>(steps_of(chunk), call);
    if (p.d_input.data) input_gradient(chunk);
    if (asks_weights()) parameter_gradients(chunk, hidden);
  }

  BackwardSteps<S> steps_of(const Chunk& chunk) const {
    BackwardSteps<S> steps{};
    steps.p = p, steps.begin = chunk.begin, steps.end = chunk.end;
    for (int i = 0; i < N; ++i) {
      steps.before[i] = by_step<const S>(p, states.before(p, i, 0), state_size<S>(p, i));
      steps.after[i] = by_step<const S>(p, states.after(p, i, 0), state_size<S>(p, i));
      steps.carried[i] = carried[i];
    }
    steps.saved = {saved.data, saved.stride};
    steps.delta_x = by_step(p, delta_x, p.B * inputs.rows, chunk);
    if (C::split) steps.delta_r = by_step(p, delta_r, p.B * recurrent.rows, chunk);
    if (two_products) {
      steps.delta_second = by_step(p, delta_second, p.B * p.P, chunk);
      steps.middle = by_step(p, middle, p.B * p.H, chunk);
    }
    if (delta_unit) steps.delta_unit = by_step(p, delta_unit, p.B * values * p.H, chunk);
    steps.unit_rows = unit_rows;
    return steps;
  }

  // The chunk's h before each step (rows, P); rows that take no part are zero whatever they hold.
  const S* find_hidden(const Chunk& chunk) const {
    const View<const S> all{states.before(p, 0, 0), p.B * p.P, p.P};
    if (!masks_hidden()) return all.data + chunk.t0 * all.time;
    const ChunkRows<S> rows{p, chunk.t0, p.P, inactive | fresh};
    launch(call.queue, over(chunk.count() * p.B, p.P), gather_rows<S>, rows, all, hidden_gathered);
    return hidden_gathered;
  }

  // And its x, in the same way.
  Matrix<const S> find_x(const Chunk& chunk) const {
    if (x_stride) return {p.x.data + chunk.t0 * p.x.time, x_stride};
    const ChunkRows<S> rows{p, chunk.t0, p.I, inactive};
    launch(call.queue, over(chunk.count() * p.B, p.I), gather_rows<S>, rows, p.x, x_gathered);
    return {x_gathered, p.I};
  }

  void input_gradient(const Chunk& chunk) const {
    const int64_t rows = chunk.count() * p.B;
    const Matrix<const S> delta{delta_x, inputs.rows}, weight{p.weights[weight_ih], p.I};
    if (input_stride) {
      multiply<S, S>(rows, p.I, inputs.rows, delta, weight, {p.d_input.data + chunk.t0 * p.d_input.time, input_stride},
                     p.add_to_input, coarse(), call.queue);
      return;
    }
    multiply<S, float>(rows, p.I, inputs.rows, delta, weight, {d_x, p.I}, false, coarse(), call.queue);
    // Zero delta times an infinite weight is no zero.
    launch(call.queue, over(rows, p.I), scatter_rows<S>, ChunkRows<S>{p, chunk.t0, p.I, inactive}, d_x, p.d_input,
           p.add_to_input);
  }

  void parameter_gradients(const Chunk& chunk, const S* hidden) {
    const int64_t rows = chunk.count() * p.B;
    const Matrix<const S> x = find_x(chunk);
    inputs.add(rows, delta_x, x, coarse(), call.queue);
    recurrent.add(rows, delta_r, {hidden, p.P}, coarse(), call.queue);
    if (second) second->add(rows, delta_second, {middle, p.H}, coarse(), call.queue);
    if (delta_unit) {
      sum_columns(rows, values * p.H, delta_unit, unit_sums, adds_units, call.queue);
      adds_units = true;
    }
    if (p.norms[weight_ih]) find_norms(chunk, x, hidden);
  }

  void find_norms(const Chunk& chunk, Matrix<const S> x, const S* hidden) const {
    const uint8_t* dropped = p.dropped;
    side_norms(chunk, inputs, delta_x, x, nullptr, p.norms[weight_ih], p.norms[bias_ih], false);
    side_norms(chunk, recurrent, delta_r, {hidden, p.P}, dropped, p.norms[weight_hh], p.norms[bias_hh], false);
    if constexpr (C::projects)
      side_norms(chunk, *second, delta_second, {middle, p.H}, nullptr, p.norms[weight_hr], nullptr, false);
    else if constexpr (two_products)
      side_norms(chunk, *second, delta_second, {middle, p.H}, dropped ? dropped + R * p.H * p.P : nullptr, p.norms[weight_hh],
                 p.norms[bias_hh], true);
    if constexpr (values > 0) unit_norms(chunk);
  }

  void side_norms(const Chunk& chunk, const Side<S>& side, const S* delta, Matrix<const S> operand, const uint8_t* dropped,
                  double* of_weight, double* of_bias, bool joins) const {
    const Launch shape = over_steps(chunk.count(), side.rows);
    launch(
        call.queue, shape, weight_norms<S>,
        WeightNorms<S>{p.B, side.rows, side.features, delta, operand.data, operand.stride, dropped, of_weight + chunk.t0, joins});
    if (of_bias) launch(call.queue, shape, bias_norms<S>, delta, side.rows, p.B, side.rows, of_bias + chunk.t0, joins);
  }

  void unit_norms(const Chunk& chunk) const {
    int first = C::bias_inside ? int(G) : 0;
    const auto find = [&](int parameter, int value, int count) {
      launch(call.queue, over_steps(chunk.count(), count * p.H), bias_norms<float>, delta_unit + value * p.H, values * p.H, p.B,
             count * p.H, p.norms[parameter] + chunk.t0, false);
    };
    for (int bias = bias_ih; C::bias_inside && bias <= bias_hh; ++bias) find(bias, 0, G);
    for (int i = 0; i < max_unit_weights && C::unit_weights[i].name; first += C::unit_weights[i++].count)
      find(throughtime::unit_weights + i, first, C::unit_weights[i].count);
  }

  void finish_weights() {
    inputs.finish(C::bias_inside ? nullptr : p.d_weights[bias_ih], call.queue);
    recurrent.finish(C::bias_inside ? nullptr : p.d_weights[bias_hh], call.queue);
    if (second) second->finish(second_part<C>(p.d_weights, p, bias_hh), call.queue);
    for_unit_values<C>(p.d_weights, p.H,
                       [&](int value, S* into) { convert_array(1, p.H, unit_sums + value * p.H, into, call.queue); });
  }

  const Backward<S> p;
  const Call call;
  Scratch scratch;
  int64_t chunk_size, window = 0;
  StateRows<S> states;  // the tape's, or the window's
  PerStep<S> saved;
  Side<S> inputs, recurrent;
  std::optional<Side<S>> second;
  std::optional<ForwardLoop<C, S>> forward;      // where states were not kept
  std::optional<SavedAgain<C, S>> again;         // where only saved values were not
  int64_t x_stride, input_stride;                // of x and d_input as matrices; 0: they are gathered and scattered
  S *delta_x, *delta_r;                          // (chunk, B, G, H), (chunk, B, R, H)
  S *delta_second = nullptr, *middle = nullptr;  // (chunk, B, P), (chunk, B, H)
  S *x_gathered = nullptr, *hidden_gathered = nullptr, *saved_window = nullptr;
  float *d_x = nullptr, *delta_unit = nullptr, *unit_sums = nullptr;
  float* carried[max_states];
  const float* unit_rows;
  bool adds_units = false;
};

}  // namespace throughtime::cuda
