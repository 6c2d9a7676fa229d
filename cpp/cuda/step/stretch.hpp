// A stretch of steps of one layer and direction, all on the device: what the two ways to run it, step by step (stepwise.hpp) and
// as one persistent launch (persistent.hpp), are both told. Steps count in processing order.
#pragma once

#include "../../step/rules.hpp"
#include "../../step/windows.hpp"

namespace throughtime::cuda {

// Rows of an array, one for each step: that of step s begins at data + s * stride. Null where there is none.
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
  float* carried[max_states];    // (B, P), (B, H): the state before `begin`; afterwards that before `end`
  PerStep<S> after[max_states];  // (B, P), (B, H): where the state after a step is kept; data may be null
  int64_t every;                 // `after` has only the states after every so many steps and the last one; 0: of every step
  PerStep<S> saved;              // (B, saved, H); data may be null
  const float* unit_rows;        // (values, H): what each unit has for itself (unit_values.hpp)

  // Where state i after a step goes, or null.
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
  PerStep<const S> after[max_states];   // and after it
  PerStep<const S> saved;               // (B, saved, H)
  // (B, P), (B, H): all that the states before step `end` receive from later steps, afterwards those before `begin`
  float* carried[max_states];
  PerStep<S> delta_x;         // (B, G, H): gradient of the pre-activation's input part
  PerStep<S> delta_r;         // (B, R, H): of its recurrent part, where the cell has another (C::split); R is C::recurrent
  PerStep<S> delta_second;    // (B, P): of a second product, where there is one
  PerStep<S> middle;          // (B, H): what that multiplied with
  PerStep<float> delta_unit;  // (B, values, H): of the unit values; data may be null
  const float* unit_rows;     // (values, H)
};

}  // namespace throughtime::cuda
