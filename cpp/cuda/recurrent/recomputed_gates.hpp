// Recomputes the saved values of a chunk's steps from states, which are all stored. The steps are independent, so one product
// with h serves all.
#pragma once

#include "../../step/forward.hpp"
#include "../step/cell_step.hpp"
#include "../step/unit_parameters.hpp"
#include "projection.hpp"

namespace throughtime::cuda {

// The rows of the chunk, in order of timesteps.
template <class C, class S>
struct RecomputedRows {
  static constexpr bool finishes = C::phases == Phases::two_products && !C::projects;

  Recurrence<S> p;
  int64_t t0;
  float *input, *recurrent, *second;  // (rows, G, H), (rows, R, H), (rows, P)
  const S *input_bias, *bias, *second_bias;
  const float* unit_rows;
  S* middle;                           // (rows, H): the operand of the second product
  PerStep<const S> before[C::states];  // (B, P), (B, H)
  PerStep<S> into;                     // (B, saved, H)
};

// Unit j of one row; see step/forward.hpp.
template <class C, class S>
struct RecomputedAt {
  using V = float;
  static constexpr bool keeps_first_phase = false;

  const RecomputedRows<C, S>& all;
  int64_t row, j, step, b;
  int flags;

  TT_DEVICE float old_state(int i) const { return to_float(all.before[i].at(step)[b * all.p.H + j]); }
  TT_DEVICE void load_inputs(float* x) const {
    load_product<C::gates>(all.input + row * C::gates * all.p.H, all.input_bias, all.p.H, j, x);
  }
  TT_DEVICE void load_recurrent(float* r) const {
    load_product<C::recurrent>(all.recurrent + row * C::recurrent * all.p.H, all.bias, all.p.H, j, r);
  }
  TT_DEVICE float second_product() const {
    const float r = all.second[row * all.p.P + j];
    return all.second_bias ? r + to_float(all.second_bias[j]) : r;
  }
  TT_DEVICE void load_unit_parameters(float* w) const { load_unit<unit_parameter_count<C>()>(all.unit_rows, all.p.H, j, w); }
  TT_DEVICE void set_middle(float m) const {
    if constexpr (RecomputedRows<C, S>::finishes) from_float(m, all.middle[row * all.p.H + j]);
  }
  TT_DEVICE void save(const float* a) const { store_unit<C::saved>(all.into.at(step) + b * C::saved * all.p.H, all.p.H, j, a); }
};

template <class C, class S>
TT_DEVICE ForwardStep<C, RecomputedAt<C, S>> recomputed_step(const RecomputedRows<C, S>& all, int64_t row, int64_t j) {
  const Steps<S> steps{all.p, 0};
  const int64_t b = row % all.p.B, step = steps.time(all.t0 + row / all.p.B);  // time() is its own inverse
  return {{all, row, j, step, b, steps.flags(step, b)}};
}

template <class C, class S>
TT_KERNEL void recompute_first(RecomputedRows<C, S> all) {
  const GridPosition of = grid_position(all.p.H);
  if (of.column >= all.p.H) return;
  const auto step = recomputed_step(all, of.row, of.column);
  float r[C::recurrent], old[C::states], next[C::states];
  step.at.load_recurrent(r);
  step.evaluate(r, old, next);
}

template <class C, class S>
TT_KERNEL void recompute_second(RecomputedRows<C, S> all) {
  const GridPosition of = grid_position(all.p.H);
  if (of.column >= all.p.H) return;
  const auto step = recomputed_step(all, of.row, of.column);
  const float r = step.at.second_product();
  float old[C::states], next[C::states];
  step.evaluate_second(&r, old, next);
}

template <class C, class S>
class RecomputedGates {
  using Rows = RecomputedRows<C, S>;

 public:
  RecomputedGates(const Recurrence<S>& problem, const Call& of_call, int64_t chunk, const float* unit_rows, Scratch& scratch)
      : p(problem), call(of_call), projection(p, call, chunk, scratch) {
    rows.p = p;
    rows.input = scratch.get<float>(chunk * p.B * C::gates * p.H);
    rows.recurrent = scratch.get<float>(chunk * p.B * C::recurrent * p.H);
    if (!C::bias_inside) rows.input_bias = p.weights[bias_ih], rows.bias = p.weights[bias_hh];
    rows.unit_rows = unit_rows;
    if constexpr (Rows::finishes) {
      rows.second = scratch.get<float>(chunk * p.B * p.P);
      rows.middle = scratch.get<S>(chunk * p.B * p.H);
      rows.second_bias = second_part<C>(p.weights, p, bias_hh);
    }
    into = scratch.get<S>(chunk * p.B * C::saved * p.H);
  }

  // `hidden` (rows, P): h before each step, zeros at the start of an episode.
  PerStep<S> run(const Chunk& chunk, const S* hidden, const StateRows<S>& states) {
    const int64_t count = chunk.count() * p.B, columns = C::recurrent * p.H;
    rows.t0 = chunk.t0;
    rows.into = by_step(p, into, p.B * C::saved * p.H, chunk);
    for (int i = 0; i < C::states; ++i) rows.before[i] = by_step<const S>(p, states.before(p, i, 0), state_size(p, i));
    projection.run(chunk, rows.input, call.stream);
    chunk_product<S, float>(count, columns, p.P, {hidden, p.P}, {p.weights[weight_hh], p.P, true}, {rows.recurrent, columns},
                            false, call.terms, call.stream);
    launch(call.stream, over(count, p.H), recompute_first<C, S>, rows);
    if constexpr (Rows::finishes) {
      const S* weight = second_part<C>(p.weights, p, weight_hh);
      chunk_product<S, float>(count, p.P, p.H, {rows.middle, p.H}, {weight, p.H, true}, {rows.second, p.P}, false, call.terms,
                              call.stream);
      launch(call.stream, over(count, p.H), recompute_second<C, S>, rows);
    }
    return rows.into;
  }

 private:
  const Recurrence<S> p;
  const Call call;
  Projection<C, S> projection;
  Rows rows{};
  S* into;  // (chunk, B, saved, H)
};

}  // namespace throughtime::cuda
