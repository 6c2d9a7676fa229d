// Clips the gradient that is carried from step to step, per sequence, by its norm in float64 (step/norms.hpp).
#pragma once

#include "../../step/norms.hpp"
#include "backward_step.hpp"

namespace throughtime::cuda {

// Runs before the step, one block per sequence.
template <class C, class S>
TT_KERNEL void clip_carried(StepwiseBackward<C, S> all) {
  const Backward<S>& p = all.of.p;
  const int64_t b = block();
  double* room = reinterpret_cast<double*>(shared_memory());
  const auto for_own = [&](const auto& take) {
    for (int i = 0; i < C::states; ++i)
      for (int64_t j = thread(); j < all.width(i); j += threads()) take(all.carried(i, b, j));
  };
  for (int64_t q = thread(); q < p.P; q += threads()) all.carried(0, b, q) = all.recurrent_gradient(b, q);

  double largest = 0, squares = 0;
  for_own([&](float& value) { largest = Larger()(largest, __builtin_fabs(double(value))); });
  largest = over_block(largest, room, Larger());
  for_own([&](float& value) {
    const double part = largest > 0 ? double(value) / largest : 0;
    squares += part * part;
  });
  const double norm = norm_of(largest, over_block(squares, room, Add()));

  const bool scales = clips(p, Steps<S>{p, p.truncate}, all.step, b, all.flags(all.step, b), norm);
  if (scales) {
    const float scale = float(p.clip / norm);
    for_own([&](float& value) { value *= scale; });
  }
  if (thread() == 0) p.clipped[all.time() * p.B + b] = scales;
}

}  // namespace throughtime::cuda
