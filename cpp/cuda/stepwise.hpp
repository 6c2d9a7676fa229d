// Steps by launches: for each one the product with h and a kernel for the cell; for cells with two phases both twice. It runs
// every cell and every option of any size.
#pragma once

#include "clip.hpp"
#include "forward_step.hpp"
#include "unit_values.hpp"

namespace throughtime::cuda {

template <class C, class S>
void stepwise_forward(const ForwardSteps<S>& of, const Call& call) {
  const Recurrence<S>& p = of.p;
  const int64_t rows = C::recurrent * p.H;
  const bool coarse = call.terms == 1;
  Scratch scratch(call.queue);
  ForwardStep<C, S> at{};
  at.of = of;
  if (!C::bias_inside) at.input_bias = p.weights[bias_ih], at.bias = p.weights[bias_hh];
  at.recurrent = scratch.get<float>(p.B * rows);
  at.hidden = scratch.get<S>(p.B * p.P);
  if constexpr (C::phases == Phases::two_products) {
    at.second_bias = second_part<C>(p.weights, p, bias_hh);
    at.second = scratch.get<float>(p.B * p.P);
    at.middle = scratch.get<S>(p.B * p.H);
  }
  if constexpr (C::phases == Phases::rows) at.notes = scratch.get<float>(p.B * C::notes * p.H);

  at.step = of.begin;
  launch(call.queue, over(p.B, p.P), forward_start<C, S>, at);
  for (; at.step < of.end; ++at.step) {
    multiply<S, float>(p.B, rows, p.P, {at.hidden, p.P}, {p.weights[weight_hh], p.P, true}, {at.recurrent, rows}, false, coarse,
                       call.queue);
    if constexpr (C::phases == Phases::rows) {
      launch(call.queue, over_sequences(p.B, p.H), forward_whole_row<C, S>, at);
    } else {
      launch(call.queue, over(p.B, p.H), forward_first<C, S>, at);
    }
    if constexpr (C::phases == Phases::two_products) {
      const S* weight = second_part<C>(p.weights, p, weight_hh);
      multiply<S, float>(p.B, p.P, p.H, {at.middle, p.H}, {weight, p.H, true}, {at.second, p.P}, false, coarse, call.queue);
      launch(call.queue, over(p.B, p.P), forward_finish<C, S>, at);
    }
  }
}

template <class C, class S>
void stepwise_backward(const BackwardSteps<S>& of, const Call& call) {
  const Backward<S>& p = of.p;
  const int64_t rows = C::recurrent * p.H;
  const bool coarse = call.terms == 1;
  Scratch scratch(call.queue);
  BackwardStep<C, S> at{};
  at.of = of;
  at.through = scratch.get<float>(p.B * p.P);
  at.is_carried = true;
  if constexpr (C::phases == Phases::two_products) at.d_middle = scratch.get<float>(p.B * p.H);
  if constexpr (C::phases == Phases::rows) at.notes = scratch.get<float>(p.B * C::notes * p.H);

  for (at.step = of.end - 1; at.step >= of.begin; --at.step) {
    if (p.clip > 0) {
      launch(call.queue, over_sequences(p.B, p.P > p.H ? p.P : p.H), clip_carried<C, S>, at);
      at.is_carried = true;
    }
    if constexpr (C::phases == Phases::one) {
      launch(call.queue, over(p.B, p.H), backward_whole<C, S>, at);
    } else if constexpr (C::phases == Phases::two_products) {
      launch(call.queue, over(p.B, p.P), backward_arrive<C, S>, at);
      const S* weight = second_part<C>(p.weights, p, weight_hh);
      multiply<S, float>(p.B, p.H, p.P, {of.delta_second.at(at.step), p.P}, {weight, p.H}, {at.d_middle, p.H}, false, coarse,
                         call.queue);
      launch(call.queue, over(p.B, p.H), backward_finish<C, S>, at);
    } else {
      launch(call.queue, over_sequences(p.B, p.H), backward_whole_row<C, S>, at);
    }
    const PerStep<S>& delta = C::split ? of.delta_r : of.delta_x;
    multiply<S, float>(p.B, p.P, rows, {delta.at(at.step), rows}, {p.weights[weight_hh], p.P}, {at.through, p.P}, false, coarse,
                       call.queue);
    at.is_carried = false;
  }
  launch(call.queue, over(p.B, p.P), backward_end<C, S>, at);
}

}  // namespace throughtime::cuda
