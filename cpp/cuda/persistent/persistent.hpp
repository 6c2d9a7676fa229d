// Runs steps as one persistent launch, for cells of one phase. Returns false, with nothing done, if no plan fits the device or
// the problem has options that the persistent kernels lack.
#pragma once

#include "../../cells/rnn.hpp"
#include "backward.hpp"

#include <map>
#include <mutex>
#include <utility>

namespace throughtime::cuda {

// Cells that exist only for zoneout, which persistent kernels lack.
template <class C>
constexpr bool is_for_zoneout = false;
template <class Activation>
constexpr bool is_for_zoneout<ZoneoutRNN<Activation>> = true;

// Whether the cell has persistent kernels.
template <class C>
constexpr bool is_persistent = C::phases == Phases::one && unit_parameter_count<C>() == 0 && !is_for_zoneout<C>;

template <class S>
bool has_zoneout(const Recurrence<S>& p) {
  for (int i = 0; i < max_states; ++i)
    if (p.zoneout_mask[i] || p.zoneout[i] > 0) return true;
  return false;
}

template <int n>
struct Constant {
  static constexpr int value = n;
};

// The types and kernels that differ between forward and backward.
template <class C, class S, int terms>
struct PersistentForwardOf {
  using Problem = PersistentForward<S>;
  template <int Q, bool clustered>
  using SharedLayout = ForwardSharedLayout<C, Q, terms, clustered>;
  static constexpr auto pack_weights = pack<S, terms, ForwardFactor>;
  template <int Q, bool clustered>
  static constexpr auto kernel = persistent_forward_kernel<C, S, terms, Q, clustered>;
};

template <class C, class S, int terms>
struct PersistentBackwardOf {
  using Problem = PersistentBackward<S>;
  template <int Q, bool clustered>
  using SharedLayout = BackwardSharedLayout<C, Q, terms, clustered>;
  static constexpr auto pack_weights = pack<S, terms, BackwardFactor>;
  template <int Q, bool clustered>
  static constexpr auto kernel = persistent_backward_kernel<C, S, terms, Q, clustered>;
};

// Number of clusters of `size` blocks that fit on the device at once. Cached, except for 0: that may be a passing error.
template <class Of, int Q>
int clusters_of_size(int size) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, int> known;  // by device and size
  const std::lock_guard<std::mutex> lock(mutex);
  int& count = known[{current_device(), size}];
  if (count == 0) {
    const Launch shape{.blocks = size, .threads = persistent_threads, .shared = device().shared_bytes, .cluster = size};
    count = clusters_at_once(shape, Of::template kernel<Q, true>);
  }
  return count;
}

template <class Of, int Q, class S>
void run_persistent(typename Of::Problem problem, Packing<S> packing, int terms, Stream stream) {
  Scratch scratch(stream);
  const PersistentPlan& plan = problem.plan;
  packing.packed = scratch.get<uint4>(int64_t(plan.size) * plan.rounds * packing.tiles * terms * persistent_threads);
  problem.packed = packing.packed;
  launch(stream, {.blocks = plan.size * plan.rounds, .threads = persistent_threads}, Of::pack_weights, packing);
  Launch shape{.blocks = plan.blocks(), .threads = persistent_threads, .shared = plan.shared_bytes};
  if (plan.mode == Mode::cluster) {
    shape.cluster = plan.size;
    return launch(stream, shape, Of::template kernel<Q, true>, problem);
  }
  shape.cooperative = true;
  const int64_t words = Of::template SharedLayout<Q, false>::exchange_words(plan);
  problem.exchange = scratch.get<uint32_t>(words);
  fill(problem.exchange, 0xff, size_t(words) * sizeof(uint32_t), stream);
  launch(stream, shape, Of::template kernel<Q, false>, problem);
}

template <class Of, int Q>
Needs needs_of_plan(Mode mode, const PersistentPlan& plan) {
  Needs needs =
      mode == Mode::cluster ? Of::template SharedLayout<Q, true>::needs(plan) : Of::template SharedLayout<Q, false>::needs(plan);
  needs.groups =
      mode == Mode::cluster && plan.size > 1 ? clusters_of_size<Of, Q>(plan.size) : device().multiprocessors / plan.size;
  return needs;
}

// Returns false if no plan fits.
template <class Of, class C, int terms, class Steps>
bool try_persistent(const Steps& steps, const Call& call) {
  const auto needs_of = [](Mode mode, const PersistentPlan& plan) {
    if constexpr (most_tiles(terms) == 2)
      if (plan.tiles == 2) return needs_of_plan<Of, 2>(mode, plan);
    return needs_of_plan<Of, 1>(mode, plan);
  };
  const auto& p = steps.p;
  const PersistentPlan plan = plan_persistent(call, terms, p.B, p.H, needs_of);
  if (plan.mode == Mode::stepwise) return false;
  const Needs needs = needs_of(plan.mode, plan);
  const Packing packing{p.weights[weight_hh], p.H, C::recurrent, needs.tiles, plan.rounds, needs.warps, plan.tiles, nullptr};
  const typename Of::Problem problem{steps, plan, nullptr, nullptr};
  if (plan.tiles == 1) run_persistent<Of, 1>(problem, packing, terms, call.stream);
  else if constexpr (most_tiles(terms) == 2) run_persistent<Of, 2>(problem, packing, terms, call.stream);
  return true;
}

// Calls with(constant) with the number of terms of this type's factors.
template <class S, class With>
bool with_terms(int terms, const With& with) {
  if constexpr (sizeof(S) == sizeof(float)) {
    if (terms == 3) return with(Constant<3>{});
    if (terms == 2) return with(Constant<2>{});
  }
  return with(Constant<1>{});
}

template <class C, class S>
bool persistent_forward(const ForwardSteps<S>& steps, const Call& call) {
  if constexpr (!is_persistent<C>) return false;
  else if (has_zoneout(steps.p)) return false;
  else
    return with_terms<S>(call.terms, [&](auto of) {
      constexpr int terms = decltype(of)::value;
      return try_persistent<PersistentForwardOf<C, S, terms>, C, terms>(steps, call);
    });
}

template <class C, class S>
bool persistent_backward(const BackwardSteps<S>& steps, const Call& call) {
  if constexpr (!is_persistent<C>) return false;
  else if (has_zoneout(steps.p) || steps.p.clip > 0) return false;
  else
    return with_terms<S>(call.terms, [&](auto of) {
      constexpr int terms = decltype(of)::value;
      return try_persistent<PersistentBackwardOf<C, S, terms>, C, terms>(steps, call);
    });
}

}  // namespace throughtime::cuda
