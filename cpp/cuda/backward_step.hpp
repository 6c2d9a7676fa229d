// The pointwise part of one step, backward: what the states after the step receive goes through the cell, to the gradients of the
// products (delta) and to the states before. Then a product carries delta on to h.
#pragma once

#include "cell_step.hpp"
#include "recurrence.hpp"
#include "whole_row.hpp"

namespace throughtime::cuda {

template <class C, class S>
struct BackwardStep {
  static constexpr int G = C::gates, R = C::recurrent, N = C::states, saved = C::saved, values = unit_values<C>();
  static constexpr int first_state = C::projects ? 1 : 0;  // of those that the cell's equations give

  BackwardSteps<S> of;
  float* through;   // (B, P): what the step after sends back to h through its product
  bool is_carried;  // whether of.carried has that already
  float* d_middle;  // (B, H): gradient of what the second product multiplied with
  float* notes;     // (B, C::notes, H)
  int64_t step;

  TT_DEVICE int rule(int64_t of_step, int64_t b) const {
    const Steps<S> steps{of.p, of.p.truncate};
    return of_step < of.p.T ? steps.rule(of_step, b) : 0;
  }
  TT_DEVICE int64_t time() const { return of.p.reverse ? of.p.T - 1 - step : step; }
  TT_DEVICE int64_t width(int i) const { return i == 0 ? of.p.P : of.p.H; }
  TT_DEVICE float& carried(int i, int64_t b, int64_t j) const { return of.carried[i][b * width(i) + j]; }

  // All that h receives from the step after; nothing crosses where that starts an episode, whatever the weights hold.
  TT_DEVICE float arriving_hidden(int64_t b, int64_t q) const {
    const float own = carried(0, b, q);
    return is_carried || rule(step + 1, b) ? own : own + through[b * of.p.P + q];
  }
  TT_DEVICE void arriving(int64_t b, int64_t j, float* dn) const {
    for (int i = first_state; i < N; ++i) dn[i] = i == 0 ? arriving_hidden(b, j) : carried(i, b, j);
  }

  // The whole cell of unit j.
  TT_DEVICE void whole(int64_t b, int64_t j) const {
    const int now = rule(step, b);
    float dn[N], dx[G] = {}, dr[R] = {}, dw[values + 1] = {};
    arriving(b, j, dn);
    if (now & inactive) {
      rest<0, N>(b, j, dn);
    } else {
      float a[saved + 1], old[N], next[N], w[values + 1], ds[N], kept[N] = {};
      load_saved(now, b, j, a, old);
      for (int i = 0; i < N; ++i) {
        next[i] = to_float(of.after[i].at(step)[b * of.p.H + j]);
        add_loss(i, b, j, dn[i]);
      }
      zone(b, j, dn, kept);
      load_unit<values>(of.unit_rows, of.p.H, j, w);
      if constexpr (values > 0) C::backward(a, old, next, w, dn, ds, dx, dr, dw);
      else C::backward(a, old, next, dn, ds, dx, dr);
      leave(now, b, j, dn, ds, kept);
    }
    put_deltas(b, j, dx, dx, dr);
    put_unit_delta(b, j, dw);
  }

  // Two products, first phase: all that feature q of h receives, and the delta of the second product.
  TT_DEVICE void arrive(int64_t b, int64_t q) const {
    const int now = rule(step, b);
    float dh = arriving_hidden(b, q), d_second = 0;
    if (now & inactive) {
      rest<0, 1>(b, q, &dh);
    } else {
      add_loss(0, b, q, dh);
      const Zoneout<S> zoneout{of.p};
      float kept = 0;
      if constexpr (C::projects) {
        put_state(0, b, q, dh);
        if (zoneout.any(0)) kept = zoneout.part(0, time(), b, q) * dh;
        d_second = dh - kept;
        carried(0, b, q) = now & (fresh | cut) ? 0.0f : kept;
      } else {
        float a[saved], old[N];
        load_saved(now, b, q, a, old);
        carried(0, b, q) = dh;
        zone(b, q, &dh, &kept);
        d_second = C::arrive(a, old, dh);
      }
    }
    from_float(d_second, of.delta_second.at(step)[b * of.p.P + q]);
  }

  // Second phase; what h receives is in `carried`.
  TT_DEVICE void finish(int64_t b, int64_t j) const {
    const int now = rule(step, b);
    float dn[N], dx[G] = {}, dr[R] = {}, m = 0;
    for (int i = first_state; i < N; ++i) dn[i] = carried(i, b, j);
    if (now & inactive) {
      rest<1, N>(b, j, dn);
    } else {
      float a[saved], old[N], ds[N], kept[N] = {};
      const float dm = d_middle[b * of.p.H + j];
      load_saved(now, b, j, a, old);
      for (int i = 1; i < N; ++i) add_loss(i, b, j, dn[i]);
      zone(b, j, dn, kept);
      C::backward(a, old, dn, &dm, ds, dx, dr, &m);
      leave(now, b, j, dn, ds, kept);
    }
    from_float(m, of.middle.at(step)[b * of.p.H + j]);
    put_deltas(b, j, dx, dx, dr);
  }

  TT_DEVICE float old_state(int now, int i, int64_t b, int64_t j) const {
    return now & fresh ? 0.0f : to_float(of.before[i].at(step)[b * of.p.H + j]);
  }

  TT_DEVICE void load_saved(int now, int64_t b, int64_t j, float* a, float* old) const {
    load_unit<saved>(of.saved.at(step) + b * saved * of.p.H, of.p.H, j, a);
    for (int i = 0; i < N; ++i) old[i] = i < first_state ? 0.0f : old_state(now, i, b, j);
  }

  // A step that is not taken hands on what it receives.
  template <int first, int end>
  TT_DEVICE void rest(int64_t b, int64_t j, const float* dn) const {
    for (int i = first; i < end; ++i) carried(i, b, j) = dn[i], put_state(i, b, j, 0);
  }

  // Zoneout: what the new states receive, and what goes past them to the old ones. The state after is then another than the one
  // that the cell's own paths start from, and all that it receives is what came.
  TT_DEVICE void zone(int64_t b, int64_t j, float* dn, float* kept) const {
    const Zoneout<S> zoneout{of.p};
    for (int i = first_state; i < N; ++i) {
      if (!zoneout.any(i)) continue;
      put_state(i, b, j, dn[i]);
      kept[i] = zoneout.part(i, time(), b, j) * dn[i];
      dn[i] -= kept[i];
    }
  }

  // What the states after received in all, and what the states before will from this step, but for its product.
  TT_DEVICE void leave(int now, int64_t b, int64_t j, const float* dn, const float* ds, const float* kept) const {
    const Zoneout<S> zoneout{of.p};
    for (int i = first_state; i < N; ++i) {
      const bool zoned = zoneout.any(i);
      if (!zoned) put_state(i, b, j, dn[i]);
      carried(i, b, j) = now & (fresh | cut) ? 0.0f : zoned ? ds[i] + kept[i] : ds[i];
    }
  }

  TT_DEVICE void put_state(int i, int64_t b, int64_t j, float total) const {
    if (of.p.d_states[i]) from_float(total, of.p.d_states[i][(time() * of.p.B + b) * width(i) + j]);
  }

  TT_DEVICE void add_loss(int i, int64_t b, int64_t j, float& dn) const {
    const Backward<S>& p = of.p;
    if (i == 0 && p.d_output.data) dn += to_float(p.d_output.data[time() * p.d_output.time + b * p.d_output.batch + j]);
    if (i == N - 1 && p.d_cell) dn += to_float(p.d_cell[(time() * p.B + b) * p.H + j]);
  }

  // dz: gradient of the pre-activations; dx and dr: of what the products with x and h gave.
  TT_DEVICE void put_deltas(int64_t b, int64_t j, const float* dz, const float* dx, const float* dr) const {
    const int64_t H = of.p.H;
    if (of.p.d_gates) store_unit<G>(of.p.d_gates + (time() * of.p.B + b) * G * H, H, j, dz);
    store_unit<G>(of.delta_x.at(step) + b * G * H, H, j, dx);
    if constexpr (C::split) store_unit<R>(of.delta_r.at(step) + b * R * H, H, j, dr);
  }

  TT_DEVICE void put_unit_delta(int64_t b, int64_t j, const float* dw) const {
    if constexpr (values > 0)
      if (of.delta_unit.data) store_unit<values>(of.delta_unit.at(step) + b * values * of.p.H, of.p.H, j, dw);
  }
};

// A row whose gradients go where they belong.
template <class C, class S>
struct BackwardRow : WholeRow<C> {
  using WholeRow<C>::has, WholeRow<C>::unit, WholeRow<C>::H;
  const BackwardStep<C, S>& at;
  int64_t b;
  int rule;

  TT_DEVICE float a(int64_t j, int k) const {
    return has(j) ? to_float(at.of.saved.at(at.step)[(b * C::saved + k) * H + unit(j)]) : 0.0f;
  }
  TT_DEVICE float last_state(int64_t j) const { return has(j) ? at.old_state(rule, C::states - 1, b, unit(j)) : 0.0f; }

  // All that the states after receive, but for their paths through each other, and what zoneout keeps of it for the old ones.
  TT_DEVICE void arriving(int64_t j, float* dn, float* kept) const {
    for (int i = 0; i < C::states; ++i) dn[i] = 0;
    if (!has(j)) return;
    at.arriving(b, unit(j), dn);
    for (int i = 0; i < C::states; ++i) at.add_loss(i, b, unit(j), dn[i]);
    at.zone(b, unit(j), dn, kept);
  }
  TT_DEVICE float dh(int64_t j) const {
    float dn[C::states], kept[C::states] = {};
    arriving(j, dn, kept);
    return dn[0];
  }
  TT_DEVICE void set_states(int64_t j, const float* dn, const float* ds, const float* kept) const {
    if (has(j)) at.leave(rule, b, unit(j), dn, ds, kept);
  }
  TT_DEVICE void add_weight(int64_t j, int k, float value) const {
    constexpr int values = unit_values<C>();
    if (has(j) && at.of.delta_unit.data) at.of.delta_unit.at(at.step)[(b * values + k) * H + unit(j)] = value;
  }
  TT_DEVICE void set_delta(int64_t j, const float* dz, const float* dx, const float* dr) const {
    if (has(j)) at.put_deltas(b, unit(j), dz, dx, dr);
  }
};

template <class C, class S>
TT_KERNEL void backward_whole(BackwardStep<C, S> at) {
  const Place of = place(at.of.p.H);
  if (of.column < at.of.p.H) at.whole(of.row, of.column);
}

template <class C, class S>
TT_KERNEL void backward_arrive(BackwardStep<C, S> at) {
  const Place of = place(at.of.p.P);
  if (of.column < at.of.p.P) at.arrive(of.row, of.column);
}

template <class C, class S>
TT_KERNEL void backward_finish(BackwardStep<C, S> at) {
  const Place of = place(at.of.p.H);
  if (of.column < at.of.p.H) at.finish(of.row, of.column);
}

template <class C, class S>
TT_KERNEL void backward_whole_row(BackwardStep<C, S> at) {
  constexpr int G = C::gates, N = C::states;
  const int64_t b = block(), H = at.of.p.H;
  const int now = at.rule(at.step, b);
  if (now & inactive) {
    for (int64_t j = thread(); j < H; j += threads()) {
      float dn[N], none[G] = {}, dw[unit_values<C>()] = {};
      at.arriving(b, j, dn);
      at.template rest<0, N>(b, j, dn);
      at.put_deltas(b, j, none, none, none);
      at.put_unit_delta(b, j, dw);
    }
    return;
  }
  BackwardRow<C, S> row{{H, at.of.unit_rows, at.notes + b * C::notes * H}, at, b, now};
  C::backward_row(row);
}

// All that h before the stretch receives, where it is looked for.
template <class C, class S>
TT_KERNEL void backward_end(BackwardStep<C, S> at) {
  const Place of = place(at.of.p.P);
  if (of.column < at.of.p.P) at.carried(0, of.row, of.column) = at.arriving_hidden(of.row, of.column);
}

}  // namespace throughtime::cuda
