// Clipping of what is carried from one step into another, per sequence. Squares may leave the range, so a norm is
// largest * sqrt(squares), in float64.
#pragma once

#include "backward_step.hpp"

namespace throughtime::cuda {

// Takes place before the step; a block for each sequence.
template <class C, class S>
TT_KERNEL void clip_carried(BackwardStep<C, S> at) {
  const Backward<S>& p = at.of.p;
  const int64_t b = block();
  double* room = reinterpret_cast<double*>(shared_memory());
  const auto for_own = [&](const auto& take) {
    for (int i = 0; i < C::states; ++i)
      for (int64_t j = thread(); j < at.width(i); j += threads()) take(at.carried(i, b, j));
  };
  for (int64_t q = thread(); q < p.P; q += threads()) at.carried(0, b, q) = at.arriving_hidden(b, q);

  double largest = 0, squares = 0;
  for_own([&](float& value) { largest = Larger()(largest, __builtin_fabs(double(value))); });
  largest = over_block(largest, room, Larger());
  for_own([&](float& value) {
    const double part = largest > 0 ? double(value) / largest : 0;
    squares += part * part;
  });
  const double norm = largest * __builtin_sqrt(over_block(squares, room, Add()));

  // Down to `clip` where it is larger. The last step's carry is the final state's gradient, which is the loss's own and stays.
  const Steps<S> steps{p, p.truncate};
  const bool clips = norm > p.clip && !(at.rule(at.step, b) & inactive) && !steps.last(at.step, b);
  if (clips) {
    const float scale = float(p.clip / norm);
    for_own([&](float& value) { value *= scale; });
  }
  if (thread() == 0) p.clipped[at.time() * p.B + b] = clips;
}

}  // namespace throughtime::cuda
