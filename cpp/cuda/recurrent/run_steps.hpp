// Runs a stretch of steps: as one persistent launch if possible, else step by step.
#pragma once

#include "../persistent/persistent.hpp"
#include "../stepwise/stepwise.hpp"

#include <stdexcept>
#include <string>

namespace throughtime::cuda {

// Whether `persistent` has run the steps. Throws if the mode requires that and it could not.
template <class C, class S, class Persistent>
bool runs_persistent(const Recurrence<S>& p, const Call& call, const Persistent& persistent) {
  if (call.mode == Mode::stepwise) return false;
  const bool done = persistent();
  if (!done && call.mode != Mode::free)
    throw std::invalid_argument(std::string("mode: no persistent kernel for ") + C::name + " of B = " + std::to_string(p.B) +
                                ", H = " + std::to_string(p.H) + " and these options");
  return done;
}

template <class C, class S>
void run_steps(const ForwardSteps<S>& of, const Call& call) {
  if (!runs_persistent<C>(of.p, call, [&] { return persistent_forward<C>(of, call); })) stepwise_forward<C>(of, call);
}

template <class C, class S>
void run_steps(const BackwardSteps<S>& of, const Call& call) {
  const Recurrence<S>& p = of.p;
  if (!runs_persistent<C>(p, call, [&] { return persistent_backward<C>(of, call); })) stepwise_backward<C>(of, call);
}

}  // namespace throughtime::cuda
