// What the steps of a chunk saved: again, from states that are all there. No step waits for another, so their products with h
// are one.
#pragma once

#include "cell_step.hpp"
#include "projection.hpp"
#include "unit_values.hpp"

namespace throughtime::cuda {

// Rows are those of the chunk, in order of timesteps.
template <class C, class S>
struct SavedRows {
  static constexpr int G = C::gates, R = C::recurrent, N = C::states, saved = C::saved, values = unit_values<C>();
  static constexpr bool finishes = C::phases == Phases::two_products && !C::projects;

  Recurrence<S> p;
  int64_t t0;
  float *input, *recurrent, *second;  // (rows, G, H), (rows, R, H), (rows, P)
  const S *input_bias, *bias, *second_bias;
  const float* unit_rows;
  S* middle;                   // (rows, H): what the second product multiplies with
  PerStep<const S> before[N];  // (B, P), (B, H)
  PerStep<S> into;             // (B, saved, H)

  TT_DEVICE void save(int64_t row, int64_t j, bool again) const {
    const Steps<S> steps{p, 0};
    const int64_t t = t0 + row / p.B, b = row % p.B, step = p.reverse ? p.T - 1 - t : t;
    const bool starts = steps.flags(step, b) & reset;
    float x[G], r[R], w[values + 1] = {}, old[N], next[N], a[saved + 1], m = 0;
    load_product<G>(input + row * G * p.H, input_bias, p.H, j, x);
    load_product<R>(recurrent + row * R * p.H, bias, p.H, j, r);
    load_unit<values>(unit_rows, p.H, j, w);
    for (int i = 0; i < N; ++i) old[i] = starts || (i == 0 && C::projects) ? 0.0f : to_float(before[i].at(step)[b * p.H + j]);
    run_cell<C>(x, r, old, w, next, a, &m);
    if constexpr (finishes) {
      if (!again) return from_float(m, middle[row * p.H + j]);
      float s = second[row * p.P + j];
      if (second_bias) s += to_float(second_bias[j]);
      C::finish(x, &s, old, next, a);
    }
    store_unit<saved>(into.at(step) + b * saved * p.H, p.H, j, a);
  }
};

template <class C, class S>
TT_KERNEL void save_rows(SavedRows<C, S> of, bool again) {
  const Place at = place(of.p.H);
  if (at.column < of.p.H) of.save(at.row, at.column, again);
}

template <class C, class S>
class SavedAgain {
  using Rows = SavedRows<C, S>;

 public:
  SavedAgain(const Recurrence<S>& problem, const Call& of_call, int64_t chunk, const float* unit_rows, Scratch& scratch)
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

  // `hidden` (rows, P): h before each step, zeros where an episode starts.
  PerStep<S> run(const Chunk& chunk, const S* hidden, const StateRows<S>& states) {
    const int64_t count = chunk.count() * p.B, columns = C::recurrent * p.H;
    rows.t0 = chunk.t0;
    rows.into = by_step(p, into, p.B * C::saved * p.H, chunk);
    for (int i = 0; i < C::states; ++i) rows.before[i] = by_step<const S>(p, states.before(p, i, 0), state_size(p, i));
    projection.run(chunk, rows.input, call.queue);
    chunk_product<S, float>(count, columns, p.P, {hidden, p.P}, {p.weights[weight_hh], p.P, true}, {rows.recurrent, columns},
                            false, call.terms, call.queue);
    launch(call.queue, over(count, p.H), save_rows<C, S>, rows, false);
    if constexpr (Rows::finishes) {
      const S* weight = second_part<C>(p.weights, p, weight_hh);
      chunk_product<S, float>(count, p.P, p.H, {rows.middle, p.H}, {weight, p.H, true}, {rows.second, p.P}, false, call.terms,
                              call.queue);
      launch(call.queue, over(count, p.H), save_rows<C, S>, rows, true);
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
