// A stretch of steps of one layer and direction, all on the device: the common input of the two ways to run it, step by step
// (stepwise.hpp) and as one persistent launch (persistent.hpp). Steps count in processing order.
#pragma once

#include "../../step/rules.hpp"
#include "../../step/windows.hpp"

namespace throughtime::cuda {

// Rows of an array, one per step: that of step s begins at data + s * stride. Null if there is none.
template <class S>
struct PerStep {
  S* data = nullptr;
  int64_t stride = 0;
  TT_INLINE S* at(int64_t step) const { return data + step * stride; }
};

template <class S>
struct ForwardSteps {
  Recurrence<S> p;
  View<S> output;                // (T, B, P), by timestep; data may be null
  int64_t begin, end;            // the steps to run
  PerStep<const float> input;    // (B, G, H): W_ih x of the step, without b_ih
  float* carried[max_states];    // (B, P), (B, H): in: the state before `begin`; out: the state before `end`
  PerStep<S> after[max_states];  // (B, P), (B, H): receives the state after a step; data may be null
  int64_t every;                 // `after` has only the states after every `every` steps and the last one; 0: of every step
  PerStep<S> saved;              // (B, saved, H); data may be null
  const float* unit_rows;        // (values, H): parameters of each unit (unit_parameters.hpp)

  // The address for state i after a step, or null.
  TT_INLINE S* kept(int i, int64_t step) const {
    if (!after[i].data || !keeps_state(every, p.T, step + 1)) return nullptr;
    return after[i].at(every ? checkpoint_row(every, step + 1) : step);
  }
};

template <class S>
struct BackwardSteps {
  Backward<S> p;
  int64_t begin, end;                   // the steps to run, from end - 1 down
  PerStep<const S> before[max_states];  // (B, P), (B, H): the states before a step
  PerStep<const S> after[max_states];   // (B, P), (B, H): the states after a step
  PerStep<const S> saved;               // (B, saved, H)
  // (B, P), (B, H): gradients from later steps; in: of the states before step `end`; out: of those before `begin`
  float* carried[max_states];
  PerStep<S> delta_x;         // (B, G, H): gradient of the pre-activation's input part
  PerStep<S> delta_r;         // (B, R, H): of its recurrent part, if that differs (C::split); R is C::recurrent
  PerStep<S> delta_second;    // (B, P): of the second product, if any
  PerStep<S> middle;          // (B, H): the operand of the second product
  PerStep<float> delta_unit;  // (B, values, H): of the unit parameters; data may be null
  const float* unit_rows;     // (values, H)
};

}  // namespace throughtime::cuda
