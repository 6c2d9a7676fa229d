// The pointwise part of one step, forward: after the product with h the cell, and where it has one the second phase. Knows no
// equation; the cell knows no memory.
#pragma once

#include "cell_step.hpp"
#include "recurrence.hpp"
#include "whole_row.hpp"

namespace throughtime::cuda {

template <class C, class S>
struct ForwardStep {
  static constexpr int G = C::gates, R = C::recurrent, N = C::states, saved = C::saved, values = unit_values<C>();
  static constexpr bool two_products = C::phases == Phases::two_products, one = C::phases == Phases::one;

  ForwardSteps<S> of;
  const S *input_bias, *bias, *second_bias;  // of the products with x and h; may be null
  float* recurrent;                          // (B, R, H): W_hh h of the step
  float* second;                             // (B, P): the second product
  S* hidden;                                 // (B, P): h before the step, as its product takes it
  S* middle;                                 // (B, H): what the second product multiplies with
  float* notes;                              // (B, C::notes, H)
  int64_t step;

  // One unit between memory and the cell.
  struct Unit {
    float x[G], r[R], old[N], next[N], a[saved + 1];
  };

  TT_DEVICE int rule(int64_t of_step, int64_t b) const {
    const Steps<S> steps{of.p, 0};
    return of_step < of.p.T ? steps.rule(of_step, b) : 0;
  }
  TT_DEVICE int64_t width(int i) const { return i == 0 ? of.p.P : of.p.H; }
  TT_DEVICE float old_state(int rule, int i, int64_t b, int64_t j) const {
    return rule & fresh ? 0.0f : of.carried[i][b * width(i) + j];
  }

  // The whole cell of unit j, or its first phase.
  TT_DEVICE void first(int64_t b, int64_t j) const {
    const int now = rule(step, b);
    Unit u;
    const float m = evaluate(now, b, j, u);
    if constexpr (two_products) from_float(m, middle[b * of.p.H + j]);
    if constexpr (one || C::projects) save(b, j, u.a);
    if constexpr (one) put_state<0>(now, b, j, u.old[0], u.next[0]);
    if constexpr (N == 2 && (one || C::projects)) put_state<1>(now, b, j, u.old[1], u.next[1]);
  }

  // The second phase of feature q of h; what the first one found is found again, which is less than to store it.
  TT_DEVICE void finish(int64_t b, int64_t q) const {
    const int now = rule(step, b);
    float r = second[b * of.p.P + q];
    if (second_bias) r += to_float(second_bias[q]);
    if constexpr (C::projects) {
      put_state<0>(now, b, q, old_state(now, 0, b, q), r);
    } else {
      Unit u;
      evaluate(now, b, q, u);
      C::finish(u.x, &r, u.old, u.next, u.a);
      save(b, q, u.a);
      put_state<0>(now, b, q, u.old[0], u.next[0]);
    }
  }

  TT_DEVICE void load_products(int64_t b, int64_t j, Unit& u) const {
    load_product<G>(of.input.at(step) + b * G * of.p.H, input_bias, of.p.H, j, u.x);
    load_product<R>(recurrent + b * R * of.p.H, bias, of.p.H, j, u.r);
  }

  TT_DEVICE float evaluate(int now, int64_t b, int64_t j, Unit& u) const {
    float w[values + 1] = {}, m = 0;
    load_products(b, j, u);
    for (int i = 0; i < N; ++i) u.old[i] = i == 0 && C::projects ? 0.0f : old_state(now, i, b, j);
    load_unit<values>(of.unit_rows, of.p.H, j, w);
    run_cell<C>(u.x, u.r, u.old, w, u.next, u.a, &m);
    return m;
  }

  TT_DEVICE void save(int64_t b, int64_t j, const float* a) const {
    if (of.saved.data) store_unit<saved>(of.saved.at(step) + b * saved * of.p.H, of.p.H, j, a);
  }

  template <int i>
  TT_DEVICE void put_state(int now, int64_t b, int64_t j, float old, float next) const {
    const Zoneout<S> zoneout{of.p};
    const Steps<S> steps{of.p, 0};
    const int64_t t = steps.time(step), place = b * width(i) + j;
    const bool still = now & inactive;
    if (zoneout.any(i)) next = Zoneout<S>::mix(zoneout.part(i, t, b, j), old, next);
    if (i == 0 && of.output.data) from_float(still ? 0.0f : next, of.output.data[t * of.output.time + b * of.output.batch + j]);
    const float after = still ? old : next;
    of.carried[i][place] = after;
    if (S* const kept = of.kept(i, step)) from_float(after, kept[place]);
    if (i == 0) put_hidden(step + 1, b, j, after);
  }

  TT_DEVICE void put_hidden(int64_t of_step, int64_t b, int64_t j, float h) const {
    from_float(rule(of_step, b) & fresh ? 0.0f : h, hidden[b * of.p.P + j]);
  }
};

// A row whose states go where `put_state` says.
template <class C, class S>
struct ForwardRow : WholeRow<C> {
  using WholeRow<C>::has, WholeRow<C>::unit, WholeRow<C>::H;
  const ForwardStep<C, S>& at;
  int64_t b;
  int rule;

  TT_DEVICE float a(int64_t j, int k) const {
    constexpr int G = C::gates;
    if (!has(j)) return 0;
    if (k < G) return at.of.input.at(at.step)[(b * G + k) * H + unit(j)];
    const float r = at.recurrent[(b * G + k - G) * H + unit(j)];
    return at.bias ? r + to_float(at.bias[(k - G) * H + unit(j)]) : r;
  }
  TT_DEVICE float last_state(int64_t j) const { return has(j) ? at.old_state(rule, C::states - 1, b, unit(j)) : 0.0f; }
  template <int i>
  TT_DEVICE void set_next(int64_t j, float next) const {
    if (has(j)) at.template put_state<i>(rule, b, unit(j), at.old_state(rule, i, b, unit(j)), next);
  }
};

// h as the product of the first step takes it.
template <class C, class S>
TT_KERNEL void forward_start(ForwardStep<C, S> at) {
  const int64_t P = at.of.p.P;
  const Place of = place(P);
  if (of.column < P) at.put_hidden(at.step, of.row, of.column, at.of.carried[0][of.row * P + of.column]);
}

template <class C, class S>
TT_KERNEL void forward_first(ForwardStep<C, S> at) {
  const Place of = place(at.of.p.H);
  if (of.column < at.of.p.H) at.first(of.row, of.column);
}

template <class C, class S>
TT_KERNEL void forward_finish(ForwardStep<C, S> at) {
  const Place of = place(at.of.p.P);
  if (of.column < at.of.p.P) at.finish(of.row, of.column);
}

template <class C, class S>
TT_KERNEL void forward_whole_row(ForwardStep<C, S> at) {
  const int64_t b = block(), H = at.of.p.H;
  ForwardRow<C, S> row{{H, at.of.unit_rows, at.notes + b * C::notes * H}, at, b, at.rule(at.step, b)};
  for (int64_t j = thread(); j < H; j += threads()) {
    typename ForwardStep<C, S>::Unit u;
    at.load_products(b, j, u);
    C::forward(u.x, u.r, u.old, u.next, u.a);
    at.save(b, j, u.a);
  }
  C::forward_row(row);
}

}  // namespace throughtime::cuda
