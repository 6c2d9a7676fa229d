// The time loop, backward, chunk by chunk from the end. The steps give the chunk's delta (the gradient of the pre-activations);
// while it is in cache, products turn it into dx, dW_ih and dW_hh. The forward loop recomputes states and saved values that the
// tape does not store.
#pragma once

#include "backward_step.hpp"
#include "chunk_gradients.hpp"
#include "forward.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class BackwardLoop {
  using Recompute = ForwardLoop<C, S, Tiles>;
  using ThreadView = BackwardThreadView<C, S, Tiles>;
  using StepView = BackwardStepView<C, S>;
  using Unit = typename ThreadView::Unit;
  static constexpr int W = lanes<S>, values = unit_parameter_count<C>();
  static constexpr bool two_products = C::phases == Phases::two_products, whole_rows = C::phases == Phases::rows;

 public:
  static void run(const Backward<S>& problem, const Host& host) {
    BackwardLoop loop(problem, host);
    host.run(host.context, [](void* self, int thread) { static_cast<BackwardLoop*>(self)->work(thread); }, &loop);
  }

 private:
  TT_SETUP BackwardLoop(const Backward<S>& problem, const Host& host)
      : p(problem),
        host(host),
        team(host),
        engine(host),
        chunk_engine(host),
        plan(make_plan<C, Tiles>(p, host, engine)),
        history{p, p.B * plan.unit_vectors * C::saved * W},
        recurrence(p, host, engine, chunk_engine, plan, history),
        products(p, host, chunk_engine, history, recurrence.deltas),
        forward{p, {}} {
    rows = scratch<const S*>(host, 3 * host.threads * products.row_buffer_rows());
    flags = scratch<uint8_t>(host, 2 * host.threads * p.B);
    scales = scratch<S>(host, host.threads * p.B);
    __builtin_memset(flags, 0, size_t(2 * host.threads * p.B));
    if (p.every || (C::saved && !p.saved)) prepare_recompute();
    all_parts = scratch<ThreadView>(host, host.threads);
    for (int i = 0; i < host.threads; ++i) all_parts[i] = part_of_work(i);
  }

  TT_SETUP void prepare_recompute() {
    if (p.every) history.checkpoint_interval = window_steps(p.every, plan.chunk);
    history.window_rows = history.checkpoint_interval;
    for (int i = 0; p.every && i < C::states; ++i)
      history.window[i] = scratch<S>(host, history.checkpoint_interval * p.B * history.width(i));
    history.saved_rows = p.every ? history.checkpoint_interval : plan.chunk;
    history.saved_window = scratch<S>(host, history.saved_rows * history.saved_size);
    History<S> own = history;
    own.recompute = true;
    recompute = new (scratch<Recompute>(host, 1)) Recompute(forward, host, team, own);
  }

  ThreadView part_of_work(int part) const {
    const S** const own = rows + 3 * part * products.row_buffer_rows();
    return {part,
            plan.rows(p.B, part),
            plan.units(part),
            plan.hidden(part),
            own,
            own + products.row_buffer_rows(),
            const_cast<S**>(own + 2 * products.row_buffer_rows()),
            flags + 2 * part * p.B,
            flags + (2 * part + 1) * p.B,
            scales + part * p.B};
  }

  ThreadView view_of(int part, Unit& unit) const {
    ThreadView own = all_parts[part];
    own.unit = &unit;
    return own;
  }

  // each(body): one phase of the team, with body(view) for every part.
  auto each_part(int thread, Unit& unit) {
    return [this, thread, &unit](const auto& body) { return team.each(thread, [&](int part) { body(view_of(part, unit)); }); };
  }

  RecurrentGradient<C, S, Tiles>& gradient() { return recurrence.recurrent_product(); }

  void work(int thread) {
    const FlushSubnormals flush;
    Unit unit(Poll(team, thread));
    team.enter(thread);
    const auto each = each_part(thread, unit);
    if (!each([&](const ThreadView& view) { prepare(view); })) return;
    for (int64_t end = p.T; end > 0;) {
      const int64_t first = window_begin(history.checkpoint_interval, end);
      if (p.every && !recompute->advance(thread, unit, first, end)) return;
      for (; end > first; end = chunk_begin(first, end, plan.chunk))
        if (!chunk(thread, unit, chunk_begin(first, end, plan.chunk), end)) return;
    }
    stream_fence();
    if (gradient().exchanges_halves() && p.d_initial[0]) each([&](const ThreadView& view) { gradient().send_half(view, 0); });
    each([&](const ThreadView& view) {
      if (p.d_initial[0]) recurrence.initial_gradient(view);
      if (products.asks_weights()) products.unpack_weights(view);
    });
  }

  // False if the call must stop.
  bool chunk(int thread, Unit& unit, int64_t begin, int64_t end) {
    const auto each = each_part(thread, unit);
    if (team.interrupted(thread)) return false;
    if (recompute && !p.every && !recompute->recompute_saved(thread, unit, begin, end)) return false;
    if (products.asks_weights() && !each([&](const ThreadView& view) { products.transpose_operands(view, begin, end); }))
      return false;
    if (!take_steps(thread, unit, begin, end)) return false;
    if (two_products && products.asks_weights() &&
        !each([&](const ThreadView& view) { products.transpose_middle(view, begin, end); }))
      return false;
    if (values > 0 && products.asks_norms() && !each([&](const ThreadView& view) { products.step_norms(view, begin, end); }))
      return false;
    return each([&](const ThreadView& view) {
      if (p.exponent) recurrence.flow_norms(view, begin, end);
      if (p.d_input.data) products.input_gradient(view, begin, end);
      if (values == 0 && products.asks_norms()) products.step_norms(view, begin, end);
      if (products.asks_weights()) products.weight_gradients(view, begin, end);
    });
  }

  // Parts that share no sequence do not wait for each other within a chunk. A product of two halves waits between its halves.
  bool take_steps(int thread, Unit& unit, int64_t begin, int64_t end) {
    if (gradient().exchanges_halves()) return exchanging_steps(thread, unit, begin, end);
    if constexpr (Tiles::halves && C::phases == Phases::one)
      if (plan.unit_parts > 1 && !recurrence.rescales_carried())
        return team.overlapped(thread, end - begin, [&](int part, int64_t i, const auto& finished) {
          recurrence.take_step(view_of(part, unit), recurrence.step_view(end - 1 - i, begin), when(finished));
        });
    const auto each = each_part(thread, unit);
    if (plan.unit_parts > 1) return steps_of_chunk(each, begin, end);
    return each([&](const ThreadView& view) { steps_of_chunk(OnePart<ThreadView>{view}, begin, end); });
  }

  template <class Each>
  bool steps_of_chunk(const Each& each, int64_t begin, int64_t end) {
    for (int64_t s = end - 1; s >= begin; --s) {
      const StepView step = recurrence.step_view(s, begin);
      if (recurrence.rescales_carried() && !each([&](const ThreadView& view) { recurrence.observe(view, step); })) return false;
      if (!each([&](const ThreadView& view) { recurrence.take_step(view, step, {}); })) return false;
      if constexpr (two_products) {
        if (!each([&](const ThreadView& view) { recurrence.second_product(view, step); })) return false;
      } else if constexpr (whole_rows) {
        if (!each([&](const ThreadView& view) { recurrence.apply_rows(view, step); })) return false;
      }
    }
    return true;
  }

  // Steps whose parts exchange half sums. No thread rests meanwhile, or runs another's part while it waits, because its tiles
  // still hold its own sums.
  bool exchanging_steps(int thread, Unit& unit, int64_t begin, int64_t end) {
    int64_t phase = 0;
    for (int64_t s = end - 1; s >= begin && !team.stopped(); --s) {
      const int64_t sending = team.start(thread, [&](int part) { gradient().send_half(view_of(part, unit), s + 1); });
      const auto sent = [&] { return team.finish(thread, sending); };
      phase = team.start(
          thread, [&](int part) { recurrence.take_step(view_of(part, unit), recurrence.step_view(s, begin), when(sent)); });
    }
    return team.finish(thread, phase);
  }

  TT_PHASE void prepare(const ThreadView& view) {
    const int part = view.part, parts = host.threads;
    Poll& poll = view.unit->steps();
    if (recompute) recompute->pack(part, poll);
    products.pack(part, poll);
    recurrence.pack(parts, part, poll);
    recurrence.deltas.clear(parts, part, poll);
    recurrence.start(view);
  }

  const Backward<S>& p;
  const Host& host;
  Team team;
  typename Tiles::Engine engine;
  typename Tiles::ChunkEngine chunk_engine;
  Plan plan;
  History<S> history;
  RecurrentBackward<C, S, Tiles> recurrence;
  ChunkGradients<C, S, Tiles> products;
  Forward<S> forward;              // the same problem, for `recompute`
  Recompute* recompute = nullptr;  // if states or saved values were not stored
  const S** rows;
  uint8_t* flags;
  S* scales;
  ThreadView* all_parts;
};

}  // namespace throughtime::TT_ISA
