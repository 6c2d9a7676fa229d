// Runs each step as launches: the product with h and a kernel for the cell; both twice for cells with two phases. It supports
// every cell, option and size.
#pragma once

#include "../step/unit_parameters.hpp"
#include "clip.hpp"
#include "forward_step.hpp"

namespace throughtime::cuda {

template <class C, class S>
void stepwise_forward(const ForwardSteps<S>& of, const Call& call) {
  const Recurrence<S>& p = of.p;
  const int64_t rows = C::recurrent * p.H;
  const bool coarse = call.terms == 1;
  Scratch scratch(call.stream);
  StepwiseForward<C, S> all{};
  all.of = of;
  if (!C::bias_inside) all.input_bias = p.weights[bias_ih], all.bias = p.weights[bias_hh];
  all.recurrent = scratch.get<float>(p.B * rows);
  all.hidden = scratch.get<S>(p.B * p.P);
  if constexpr (C::phases == Phases::two_products) {
    all.second_bias = second_part<C>(p.weights, p, bias_hh);
    all.second = scratch.get<float>(p.B * p.P);
    all.middle = scratch.get<S>(p.B * p.H);
  }
  if constexpr (C::phases == Phases::rows) all.row_scratch = scratch.get<float>(p.B * C::row_scratch * p.H);

  all.step = of.begin;
  launch(call.stream, over(p.B, p.P), forward_start<C, S>, all);
  for (; all.step < of.end; ++all.step) {
    multiply<S, float>(p.B, rows, p.P, {all.hidden, p.P}, {p.weights[weight_hh], p.P, true}, {all.recurrent, rows}, false, coarse,
                       call.stream);
    if constexpr (C::phases == Phases::rows) {
      launch(call.stream, over_sequences(p.B, p.H), forward_whole_row<C, S>, all);
    } else {
      launch(call.stream, over(p.B, p.H), forward_first<C, S>, all);
    }
    if constexpr (C::phases == Phases::two_products) {
      const S* weight = second_part<C>(p.weights, p, weight_hh);
      multiply<S, float>(p.B, p.P, p.H, {all.middle, p.H}, {weight, p.H, true}, {all.second, p.P}, false, coarse, call.stream);
      launch(call.stream, over(p.B, p.P), forward_second<C, S>, all);
    }
  }
}

template <class C, class S>
void stepwise_backward(const BackwardSteps<S>& of, const Call& call) {
  const Backward<S>& p = of.p;
  const int64_t rows = C::recurrent * p.H;
  const bool coarse = call.terms == 1;
  Scratch scratch(call.stream);
  StepwiseBackward<C, S> all{};
  all.of = of;
  all.through = scratch.get<float>(p.B * p.P);
  all.is_carried = true;
  if constexpr (C::phases == Phases::two_products) all.d_middle = scratch.get<float>(p.B * p.H);
  if constexpr (C::phases == Phases::rows) all.row_scratch = scratch.get<float>(p.B * C::row_scratch * p.H);

  for (all.step = of.end - 1; all.step >= of.begin; --all.step) {
    if (p.clip > 0) {
      launch(call.stream, over_sequences(p.B, p.P > p.H ? p.P : p.H), clip_carried<C, S>, all);
      all.is_carried = true;
    }
    if constexpr (C::phases == Phases::one) {
      launch(call.stream, over(p.B, p.H), backward_whole<C, S>, all);
    } else if constexpr (C::phases == Phases::two_products) {
      launch(call.stream, over(p.B, p.P), backward_second_delta<C, S>, all);
      const S* weight = second_part<C>(p.weights, p, weight_hh);
      multiply<S, float>(p.B, p.H, p.P, {of.delta_second.at(all.step), p.P}, {weight, p.H}, {all.d_middle, p.H}, false, coarse,
                         call.stream);
      launch(call.stream, over(p.B, p.H), backward_first<C, S>, all);
    } else {
      launch(call.stream, over_sequences(p.B, p.H), backward_whole_row<C, S>, all);
    }
    const PerStep<S>& delta = C::split ? of.delta_r : of.delta_x;
    multiply<S, float>(p.B, p.P, rows, {delta.at(all.step), rows}, {p.weights[weight_hh], p.P}, {all.through, p.P}, false, coarse,
                       call.stream);
    all.is_carried = false;
  }
  launch(call.stream, over(p.B, p.P), backward_end<C, S>, all);
}

}  // namespace throughtime::cuda
