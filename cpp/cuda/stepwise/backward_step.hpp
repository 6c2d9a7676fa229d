// The pointwise part of one step, backward: turns the gradients of the states after the step into the gradients of the products
// (delta) and of the states before. Then a product carries delta to h.
#pragma once

#include "../../step/backward.hpp"
#include "../step/cell_step.hpp"
#include "../step/stretch.hpp"
#include "whole_row.hpp"

namespace throughtime::cuda {

template <class C, class S>
struct StepwiseBackward {
  BackwardSteps<S> of;
  float* through;      // (B, P): the gradient of h through the next step's product
  bool is_carried;     // whether of.carried already includes it
  float* d_middle;     // (B, H): gradient of the second product's operand
  float* row_scratch;  // (B, C::row_scratch, H)
  int64_t step;

  TT_DEVICE int flags(int64_t of_step, int64_t b) const {
    const Steps<S> steps{of.p, of.p.truncate};
    return of_step < of.p.T ? steps.flags(of_step, b) : 0;
  }
  TT_DEVICE int64_t time() const { return Steps<S>{of.p, 0}.time(step); }
  TT_DEVICE int64_t width(int i) const { return i == 0 ? of.p.P : of.p.H; }
  TT_DEVICE float& carried(int i, int64_t b, int64_t j) const { return of.carried[i][b * width(i) + j]; }

  // The gradient of h from later steps. If none crosses, the next step's product is left out, whatever the weights hold.
  TT_DEVICE float recurrent_gradient(int64_t b, int64_t q) const {
    const float own = carried(0, b, q);
    return is_carried || !crosses(flags(step + 1, b)) ? own : own + through[b * of.p.P + q];
  }
};

// Unit j, or feature j of h, of one sequence; see step/backward.hpp.
template <class C, class S>
struct BackwardAt {
  using V = float;
  static constexpr int values = unit_parameter_count<C>();

  const StepwiseBackward<C, S>& all;
  int64_t b, j;
  int flags;

  TT_DEVICE const Backward<S>& p() const { return all.of.p; }
  TT_DEVICE int64_t H() const { return all.of.p.H; }
  TT_DEVICE int64_t row() const { return all.time() * p().B + b; }

  TT_DEVICE float recurrent_gradient() const { return all.recurrent_gradient(b, j); }
  TT_DEVICE float carried(int i) const { return all.carried(i, b, j); }
  TT_DEVICE void set_carried(int i, float d) const { all.carried(i, b, j) = d; }
  TT_DEVICE void load_saved(float* a) const { load_unit<C::saved>(all.of.saved.at(all.step) + b * C::saved * H(), H(), j, a); }
  TT_DEVICE float old_state(int i) const { return to_float(all.of.before[i].at(all.step)[b * H() + j]); }
  TT_DEVICE float new_state(int i) const { return to_float(all.of.after[i].at(all.step)[b * H() + j]); }
  TT_DEVICE void load_unit_parameters(float* w) const { load_unit<values>(all.of.unit_rows, H(), j, w); }
  TT_DEVICE void add_unit_gradients(const float* dw) const {
    if (all.of.delta_unit.data) store_unit<values>(all.of.delta_unit.at(all.step) + b * values * H(), H(), j, dw);
  }
  TT_DEVICE void skip_unit_gradients() const {
    const float zeros[values + 1] = {};
    add_unit_gradients(zeros);
  }

  TT_DEVICE bool has_output_loss() const { return p().d_output.data; }
  TT_DEVICE float output_loss() const {
    const View<const S>& d = p().d_output;
    return to_float(d.data[all.time() * d.time + b * d.batch + j]);
  }
  TT_DEVICE bool has_cell_loss() const { return p().d_cell; }
  TT_DEVICE float cell_loss() const { return to_float(p().d_cell[row() * H() + j]); }

  TT_DEVICE bool zoned(int i) const { return Zoneout<S>{p()}.any(i); }
  TT_DEVICE float fraction(int i) const { return zoneout_fraction(Zoneout<S>{p()}, i, all.time(), b, j); }
  TT_DEVICE static float keep(float value) { return value; }

  TT_DEVICE void set_state_gradient(int i, float total) const {
    if (p().d_states[i]) from_float(total, p().d_states[i][row() * all.width(i) + j]);
  }
  TT_DEVICE void set_deltas(const float* dz, const float* dx, const float* dr) const {
    constexpr int G = C::gates, R = C::recurrent;
    if (p().d_gates) store_unit<G>(p().d_gates + row() * G * H(), H(), j, dz);
    store_unit<G>(all.of.delta_x.at(all.step) + b * G * H(), H(), j, dx);
    if constexpr (C::split) store_unit<R>(all.of.delta_r.at(all.step) + b * R * H(), H(), j, dr);
  }
  TT_DEVICE void set_second_delta(float d) const { from_float(d, all.of.delta_second.at(all.step)[b * p().P + j]); }
  TT_DEVICE void set_middle(float m) const { from_float(m, all.of.middle.at(all.step)[b * H() + j]); }
};

template <class C, class S>
TT_DEVICE BackwardStep<C, BackwardAt<C, S>> backward_step(const StepwiseBackward<C, S>& all, int64_t b, int64_t j) {
  return {{all, b, j, all.flags(all.step, b)}};
}

// A whole row, whose gradients the step stores.
template <class C, class S>
struct BackwardRow : WholeRow<C> {
  using WholeRow<C>::has, WholeRow<C>::unit, WholeRow<C>::H;
  const StepwiseBackward<C, S>& all;
  int64_t b;
  int flags;

  TT_DEVICE BackwardStep<C, BackwardAt<C, S>> step(int64_t j) const { return {{all, b, unit(j), flags}}; }
  TT_DEVICE float a(int64_t j, int k) const {
    return has(j) ? to_float(all.of.saved.at(all.step)[(b * C::saved + k) * H + unit(j)]) : 0.0f;
  }
  TT_DEVICE float last_state(int64_t j) const { return has(j) && !(flags & reset) ? step(j).at.old_state(C::states - 1) : 0.0f; }
  TT_DEVICE void arriving(int64_t j, float* dn, float* kept) const {
    for (int i = 0; i < C::states; ++i) dn[i] = 0;
    if (has(j)) step(j).load_all_gradients(step(j).at.recurrent_gradient(), dn, kept);
  }
  TT_DEVICE float dh(int64_t j) const {
    float dn[C::states], kept[C::states] = {};
    arriving(j, dn, kept);
    return dn[0];
  }
  TT_DEVICE void set_states(int64_t j, const float* dn, const float* ds, const float* kept) const {
    if (has(j)) step(j).store_state_gradient(dn, ds, kept);
  }
  TT_DEVICE void add_weight(int64_t j, int k, float value) const {
    constexpr int values = unit_parameter_count<C>();
    if (has(j) && all.of.delta_unit.data) all.of.delta_unit.at(all.step)[(b * values + k) * H + unit(j)] = value;
  }
  TT_DEVICE void set_delta(int64_t j, const float* dz, const float* dx, const float* dr) const {
    if (has(j)) step(j).at.set_deltas(dz, dx, dr);
  }
};

template <class C, class S>
TT_KERNEL void backward_whole(StepwiseBackward<C, S> all) {
  const GridPosition of = grid_position(all.of.p.H);
  if (of.column >= all.of.p.H) return;
  const auto step = backward_step(all, of.row, of.column);
  step.run(step.at.recurrent_gradient());
}

template <class C, class S>
TT_KERNEL void backward_second_delta(StepwiseBackward<C, S> all) {
  const GridPosition of = grid_position(all.of.p.P);
  if (of.column >= all.of.p.P) return;
  const auto step = backward_step(all, of.row, of.column);
  step.second_product_delta(step.at.recurrent_gradient());
}

template <class C, class S>
TT_KERNEL void backward_first(StepwiseBackward<C, S> all) {
  const GridPosition of = grid_position(all.of.p.H);
  if (of.column < all.of.p.H) backward_step(all, of.row, of.column).run_first(all.d_middle[of.row * all.of.p.H + of.column]);
}

template <class C, class S>
TT_KERNEL void backward_whole_row(StepwiseBackward<C, S> all) {
  const int64_t b = block(), H = all.of.p.H;
  BackwardRow<C, S> row{{H, all.of.unit_rows, all.row_scratch + b * C::row_scratch * H}, all, b, all.flags(all.step, b)};
  if (row.flags & inactive) {
    for (int64_t j = thread(); j < H; j += threads()) {
      const auto step = backward_step(all, b, j);
      step.skip(step.at.recurrent_gradient());
    }
  } else {
    C::backward_row(row);
  }
}

// Stores in `carried` the total gradient of h before the stretch.
template <class C, class S>
TT_KERNEL void backward_end(StepwiseBackward<C, S> all) {
  const GridPosition of = grid_position(all.of.p.P);
  if (of.column < all.of.p.P) all.carried(0, of.row, of.column) = all.recurrent_gradient(of.row, of.column);
}

}  // namespace throughtime::cuda
