// One step of one vector of units of one sequence, backward: the cell's derivative, and the effect of lengths, resets,
// truncation, zoneout and losses on the gradients of its states. `At` loads and stores the vector: a register of units on the
// CPU, one unit on a GPU.
//   V                              a number
//   flags                          StepFlags of the sequence at this step
//   carried(i), set_carried(i, d)  the gradient of state i that a step passes to the step before it, without h's product
//   load_saved(a), old_state(i), new_state(i)
//                                  the cell's saved values, and its states before and after the step; old_state is called only
//                                  if the step does not start an episode
//   load_unit_parameters(w), add_unit_gradients(dw), skip_unit_gradients()
//                                  only for cells with unit parameters; the last one at an inactive step
//   has_output_loss(), output_loss(), has_cell_loss(), cell_loss()
//   zoned(i), fraction(i)          whether state i has zoneout, and the fraction of the old state that the new one kept
//   set_state_gradient(i, d)       the total gradient of the state after the step
//   keep(value)                    the value, with zeros in lanes without a unit
//   set_deltas(dz, dx, dr)         gradients of the pre-activations, and of the products with x and h
//   set_second_delta(d), set_middle(m)
//                                  gradient of the second product, and its operand
#pragma once

#include "../cells/cell.hpp"
#include "rules.hpp"
#include "zoneout.hpp"

namespace throughtime::TT_ISA {

template <class C, class At>
struct BackwardStep {
  using V = typename At::V;
  static constexpr int G = C::gates, R = C::recurrent, N = C::states, saved = C::saved, values = unit_parameter_count<C>();
  static constexpr int first_state = C::projects ? 1 : 0;  // the first state that the cell's equations compute

  At at;

  // The whole cell; dh is the gradient of h from later steps.
  TT_INLINE void run(V dh) const {
    V dn[N], dx[G] = {}, dr[R] = {};
    load_gradients(dh, dn);
    if (at.flags & inactive) {
      pass_through(dn, 0, N);
      if constexpr (values > 0) at.skip_unit_gradients();
    } else {
      V a[saved + 1], old[N], next[N], ds[N], kept[N] = {};
      load_saved(a, old);
      for (int i = 0; i < N; ++i) next[i] = at.new_state(i), add_loss(i, dn[i]);
      zoneout_backward(dn, kept);
      if constexpr (values > 0) {
        V w[values], dw[values];
        at.load_unit_parameters(w);
        C::backward(a, old, next, w, dn, ds, dx, dr, dw);
        at.add_unit_gradients(dw);
      } else {
        C::backward(a, old, next, dn, ds, dx, dr);
      }
      store_state_gradient(dn, ds, kept);
      keep_units(dx, dr);
    }
    at.set_deltas(dx, dx, dr);
  }

  // Two products: computes the total gradient of h and the delta of the second product.
  TT_INLINE void second_product_delta(V dh) const {
    V d_second = {};
    if (at.flags & inactive) {
      pass_through(&dh, 0, 1);
    } else {
      add_loss(0, dh);
      V kept = {};
      if constexpr (C::projects) {
        at.set_state_gradient(0, dh);
        if (at.zoned(0)) kept = at.fraction(0) * dh;
        d_second = dh - kept;
        at.set_carried(0, stops_gradient(at.flags) ? V{} : at.keep(kept));
      } else {
        V a[saved], old[N];
        load_saved(a, old);
        at.set_carried(0, dh);
        zoneout_backward(&dh, &kept);
        d_second = C::second_product_delta(a, old, dh);
      }
      d_second = at.keep(d_second);
    }
    at.set_second_delta(d_second);
  }

  // Two products: the cell's first phase. dm: gradient of the second product's operand; carried(0): total gradient of h.
  TT_INLINE void run_first(V dm) const {
    V dn[N], dx[G] = {}, dr[R] = {}, m = {};
    for (int i = first_state; i < N; ++i) dn[i] = at.carried(i);
    if (at.flags & inactive) {
      pass_through(dn, 1, N);
    } else {
      V a[saved], old[N], ds[N], kept[N] = {};
      load_saved(a, old);
      for (int i = 1; i < N; ++i) add_loss(i, dn[i]);
      zoneout_backward(dn, kept);
      C::backward(a, old, dn, &dm, ds, dx, dr, &m);
      store_state_gradient(dn, ds, kept);
      keep_units(dx, dr);
    }
    at.set_middle(m);
    at.set_deltas(dx, dx, dr);
  }

  // Whole rows: computes the gradients dn of the states after, without their paths through each other, and the part `kept` that
  // zoneout passes to the old states.
  TT_INLINE void load_all_gradients(V dh, V* dn, V* kept) const {
    load_gradients(dh, dn);
    for (int i = 0; i < N; ++i) add_loss(i, dn[i]);
    zoneout_backward(dn, kept);
  }

  // Whole rows: an inactive step.
  TT_INLINE void skip(V dh) const {
    V dn[N], none[G] = {};
    load_gradients(dh, dn);
    pass_through(dn, 0, N);
    at.set_deltas(none, none, none);
    if constexpr (values > 0) at.skip_unit_gradients();
  }

  // Stores the total gradient of the states after the step, and its contribution to the states before, without its product.
  TT_INLINE void store_state_gradient(const V* dn, const V* ds, const V* kept) const {
    for (int i = first_state; i < N; ++i) {
      const bool zoned = at.zoned(i);
      if (!zoned) at.set_state_gradient(i, dn[i]);
      // Lanes past H may hold NaN, from an infinite input times their zero weights. These must not reach a sum over lanes.
      at.set_carried(i, stops_gradient(at.flags) ? V{} : at.keep(zoned ? ds[i] + kept[i] : ds[i]));
    }
  }

 private:
  TT_INLINE void load_gradients(V dh, V* dn) const {
    dn[0] = dh;
    for (int i = 1; i < N; ++i) dn[i] = at.carried(i);
  }

  TT_INLINE void add_loss(int i, V& dn) const {
    if (i == 0 && at.has_output_loss()) dn += at.output_loss();
    if (i == N - 1 && at.has_cell_loss()) dn += at.cell_loss();
  }

  // An inactive step passes the gradients of states first..end - 1 through unchanged.
  TT_INLINE void pass_through(const V* dn, int first, int end) const {
    for (int i = first; i < end; ++i) at.set_carried(i, dn[i]), at.set_state_gradient(i, V{});
  }

  // Splits the gradient of the states after into the part dn for the cell's new states and the part `kept` that bypasses the
  // cell to the old ones. The total gradient of a state with zoneout is the incoming one.
  TT_INLINE void zoneout_backward(V* dn, V* kept) const {
    for (int i = first_state; i < N; ++i) {
      if (!at.zoned(i)) continue;
      at.set_state_gradient(i, dn[i]);
      kept[i] = at.fraction(i) * dn[i];
      dn[i] -= kept[i];
    }
  }

  TT_INLINE void load_saved(V* a, V* old) const {
    at.load_saved(a);
    for (int i = first_state; i < N; ++i) old[i] = at.flags & reset ? V{} : at.old_state(i);
  }

  TT_INLINE void keep_units(V* dx, V* dr) const {
    for (int g = 0; g < G; ++g) dx[g] = at.keep(dx[g]);
    for (int g = 0; g < R; ++g) dr[g] = at.keep(dr[g]);
  }
};

}  // namespace throughtime::TT_ISA
