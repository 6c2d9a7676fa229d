// The pointwise part of one step, forward: the cell after the product with h, and its second phase, if any. Contains no
// equations; the cell contains no addresses.
#pragma once

#include "../../step/forward.hpp"
#include "../step/cell_step.hpp"
#include "../step/stretch.hpp"
#include "whole_row.hpp"

namespace throughtime::cuda {

template <class C, class S>
struct StepwiseForward {
  ForwardSteps<S> of;
  const S *input_bias, *bias, *second_bias;  // of the products with x and h; may be null
  float* recurrent;                          // (B, R, H): W_hh h of the step
  float* second;                             // (B, P): the second product
  S* hidden;                                 // (B, P): h before the step, the operand of its product
  S* middle;                                 // (B, H): the operand of the second product
  float* row_scratch;                        // (B, C::row_scratch, H)
  int64_t step;

  TT_DEVICE int flags(int64_t of_step, int64_t b) const {
    const Steps<S> steps{of.p, 0};
    return of_step < of.p.T ? steps.flags(of_step, b) : 0;
  }
  TT_DEVICE int64_t time() const { return Steps<S>{of.p, 0}.time(step); }
  TT_DEVICE int64_t width(int i) const { return i == 0 ? of.p.P : of.p.H; }
  TT_DEVICE void set_hidden(int64_t of_step, int64_t b, int64_t j, float h) const {
    from_float(state_before(flags(of_step, b), h), hidden[b * of.p.P + j]);
  }
};

// Unit j, or feature j of h, of one sequence; see step/forward.hpp.
template <class C, class S>
struct ForwardAt {
  using V = float;
  static constexpr bool keeps_first_phase = false;  // recomputing it is cheaper than storing it

  const StepwiseForward<C, S>& all;
  int64_t b, j;
  int flags;

  TT_DEVICE float old_state(int i) const { return all.of.carried[i][b * all.width(i) + j]; }
  TT_DEVICE void load_inputs(float* x) const {
    load_product<C::gates>(all.of.input.at(all.step) + b * C::gates * all.of.p.H, all.input_bias, all.of.p.H, j, x);
  }
  TT_DEVICE void load_recurrent(float* r) const {
    load_product<C::recurrent>(all.recurrent + b * C::recurrent * all.of.p.H, all.bias, all.of.p.H, j, r);
  }
  TT_DEVICE float second_product() const {
    const float r = all.second[b * all.of.p.P + j];
    return all.second_bias ? r + to_float(all.second_bias[j]) : r;
  }
  TT_DEVICE void load_unit_parameters(float* w) const {
    load_unit<unit_parameter_count<C>()>(all.of.unit_rows, all.of.p.H, j, w);
  }
  TT_DEVICE bool zoned(int i) const { return Zoneout<S>{all.of.p}.any(i); }
  TT_DEVICE float fraction(int i) const { return zoneout_fraction(Zoneout<S>{all.of.p}, i, all.time(), b, j); }
  TT_DEVICE void save(const float* a) const {
    if (all.of.saved.data) store_unit<C::saved>(all.of.saved.at(all.step) + b * C::saved * all.of.p.H, all.of.p.H, j, a);
  }
  TT_DEVICE void set_middle(float m) const { from_float(m, all.middle[b * all.of.p.H + j]); }
  TT_DEVICE void set_output(float y) const {
    const View<S>& output = all.of.output;
    if (output.data) from_float(y, output.data[all.time() * output.time + b * output.batch + j]);
  }
  TT_DEVICE void set_state(int i, float after) const {
    const int64_t place = b * all.width(i) + j;
    all.of.carried[i][place] = after;
    if (S* const kept = all.of.kept(i, all.step)) from_float(after, kept[place]);
    if (i == 0) all.set_hidden(all.step + 1, b, j, after);
  }
};

template <class C, class S>
TT_DEVICE ForwardStep<C, ForwardAt<C, S>> forward_step(const StepwiseForward<C, S>& all, int64_t b, int64_t j, int flags) {
  return {{all, b, j, flags}};
}

// A whole row, whose states the step stores.
template <class C, class S>
struct ForwardRow : WholeRow<C> {
  using WholeRow<C>::has, WholeRow<C>::unit, WholeRow<C>::H;
  const StepwiseForward<C, S>& all;
  int64_t b;
  int flags;

  TT_DEVICE auto step(int64_t j) const { return forward_step(all, b, unit(j), flags); }
  TT_DEVICE float a(int64_t j, int k) const {
    constexpr int G = C::gates;
    if (!has(j)) return 0;
    if (k < G) return all.of.input.at(all.step)[(b * G + k) * H + unit(j)];
    const float r = all.recurrent[(b * G + k - G) * H + unit(j)];
    return all.bias ? r + to_float(all.bias[(k - G) * H + unit(j)]) : r;
  }
  TT_DEVICE float last_state(int64_t j) const { return has(j) ? step(j).old_state(C::states - 1) : 0.0f; }
  template <int i>
  TT_DEVICE void set_next(int64_t j, float next) const {
    if (has(j)) step(j).store_state(i, step(j).old_state(i), next);
  }
};

// Stores h before the first step as the operand of its product.
template <class C, class S>
TT_KERNEL void forward_start(StepwiseForward<C, S> all) {
  const int64_t P = all.of.p.P;
  const GridPosition of = grid_position(P);
  if (of.column < P) all.set_hidden(all.step, of.row, of.column, all.of.carried[0][of.row * P + of.column]);
}

template <class C, class S>
TT_KERNEL void forward_first(StepwiseForward<C, S> all) {
  const GridPosition of = grid_position(all.of.p.H);
  if (of.column >= all.of.p.H) return;
  const auto step = forward_step(all, of.row, of.column, all.flags(all.step, of.row));
  float r[C::recurrent];
  step.at.load_recurrent(r);
  step.run(r);
}

template <class C, class S>
TT_KERNEL void forward_second(StepwiseForward<C, S> all) {
  const GridPosition of = grid_position(all.of.p.P);
  if (of.column >= all.of.p.P) return;
  const auto step = forward_step(all, of.row, of.column, all.flags(all.step, of.row));
  const float r = step.at.second_product();
  step.run_second(&r);
}

template <class C, class S>
TT_KERNEL void forward_whole_row(StepwiseForward<C, S> all) {
  const int64_t b = block(), H = all.of.p.H;
  ForwardRow<C, S> row{{H, all.of.unit_rows, all.row_scratch + b * C::row_scratch * H}, all, b, all.flags(all.step, b)};
  for (int64_t j = thread(); j < H; j += threads()) {
    const auto step = forward_step(all, b, j, row.flags);
    float r[C::recurrent];
    step.at.load_recurrent(r);
    step.run(r);
  }
  C::forward_row(row);
}

}  // namespace throughtime::cuda
