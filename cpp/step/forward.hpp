// One step of one vector of units of one sequence, forward: the cell, and the effect of lengths, resets and zoneout on its
// states. `At` loads and stores the vector: a register of units on the CPU, one unit on a GPU.
//   V                             a number
//   flags                         StepFlags of the sequence at this step
//   old_state(i)                  state i before the step; called only if the step does not start an episode
//   load_inputs(x)                the input part of the pre-activations (G)
//   load_unit_parameters(w)       only for cells with unit parameters
//   zoned(i), fraction(i)         whether state i has zoneout, and the fraction of the old state that the new one keeps
//   save(a)                       the values for the backward
//   set_middle(m)                 the second product's operand; only for cells with two products
//   keeps_first_phase             if equations follow the second product: whether the first phase saves its values for them
//   load_saved(a)                 if so: these values
//   load_recurrent(r)             if not: the recurrent part of the pre-activations (R), to recompute them
//   set_output(y), set_state(i, s)
#pragma once

#include "../cells/cell.hpp"
#include "rules.hpp"
#include "zoneout.hpp"

namespace throughtime::TT_ISA {

// Runs the cell, or its first phase, which fills m. `w` are unit parameters.
template <class C, class V>
TT_INLINE void run_cell(const V* x, const V* r, const V* old, const V* w, V* next, V* a, V* m) {
  if constexpr (C::phases == Phases::two_products) C::forward(x, r, old, next, a, m);
  else if constexpr (C::phases == Phases::one && unit_parameter_count<C>() > 0) C::forward(x, r, old, w, next, a);
  else C::forward(x, r, old, next, a);
}

template <class C, class At>
struct ForwardStep {
  using V = typename At::V;
  static constexpr int G = C::gates, R = C::recurrent, N = C::states, saved = C::saved, values = unit_parameter_count<C>();
  static constexpr bool one = C::phases == Phases::one, two_products = C::phases == Phases::two_products;
  static constexpr bool finishes = two_products && !C::projects;  // whether the cell has equations after the second product
  static constexpr int first_state = C::projects ? 1 : 0;         // the first state that the cell's equations compute

  At at;

  // The whole cell, or its first phase; r is the recurrent part of its pre-activations.
  TT_INLINE void run(const V* r) const {
    V old[N], next[N];
    evaluate(r, old, next);
    if constexpr (one) store_state(0, old[0], next[0]);
    if constexpr (N == 2 && (one || C::projects)) store_state(1, old[1], next[1]);
  }

  // The second phase; r is the second product.
  TT_INLINE void run_second(const V* r) const {
    V old[N], next[N];
    if constexpr (C::projects) old[0] = old_state(0), next[0] = *r;
    else evaluate_second(r, old, next);
    store_state(0, old[0], next[0]);
  }

  // Only the equations: saves values and sets the second product's operand, but no state.
  TT_INLINE void evaluate(const V* r, V (&old)[N], V (&next)[N]) const {
    V x[G], w[values + 1] = {}, a[saved + 1] = {}, m;
    load_old(old);
    at.load_inputs(x);
    if constexpr (one && values > 0) at.load_unit_parameters(w);
    run_cell<C>(x, r, old, w, next, a, &m);
    if constexpr (saves_first_phase()) at.save(a);
    if constexpr (two_products) at.set_middle(m);
  }

  TT_INLINE void evaluate_second(const V* r, V (&old)[N], V (&next)[N]) const {
    V x[G], a[saved + 1];
    load_old(old);
    at.load_inputs(x);
    if constexpr (At::keeps_first_phase) {
      at.load_saved(a);
    } else {
      V first[R], w[1] = {}, m;
      at.load_recurrent(first);
      run_cell<C>(x, first, old, w, next, a, &m);
    }
    C::finish(x, r, old, next, a);
    at.save(a);
  }

  // Stores state i after the step, and for i = 0 the output.
  TT_INLINE void store_state(int i, V old, V next) const {
    const bool still = at.flags & inactive;
    if (at.zoned(i)) next = mix(at.fraction(i), old, next);
    if (i == 0) at.set_output(still ? V{} : next);
    at.set_state(i, still ? old : next);
  }

  TT_INLINE V old_state(int i) const { return at.flags & reset ? V{} : at.old_state(i); }

 private:
  static constexpr bool saves_first_phase() {
    if constexpr (finishes) return At::keeps_first_phase;
    else return true;
  }

  TT_INLINE void load_old(V (&old)[N]) const {
    if constexpr (first_state == 0) old[0] = old_state(0);
    if constexpr (N == 2) old[1] = old_state(1);
  }
};

}  // namespace throughtime::TT_ISA
