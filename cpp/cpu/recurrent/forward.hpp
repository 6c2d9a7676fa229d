// The time loop, forward. For each chunk of steps, one product gives x W^T + b; then each step runs the recurrent product and
// the cell. If the cell has two phases, a barrier follows, then the second phase.
#pragma once

#include "forward_step.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class ForwardLoop {
  using V = Vec<S>;
  using Engine = typename Tiles::Engine;
  using ChunkEngine = typename Tiles::ChunkEngine;
  using Product = typename Tiles::Product;
  using Recurrence = RecurrentForward<C, S, Tiles>;
  using StepView = typename Recurrence::StepView;
  using ThreadView = typename Recurrence::ThreadView;
  static constexpr int W = lanes<S>, G = C::gates;
  static constexpr bool two_products = C::phases == Phases::two_products;

 public:
  static void* operator new(size_t, void* place) { return place; }
  using Unit = typename Recurrence::Unit;

  TT_SETUP ForwardLoop(const Forward<S>& problem, const Host& host, Team& team, const History<S>& history)
      : p(problem),
        host(host),
        team(team),
        engine(host),
        chunk_engine(host),
        plan(make_plan<C, Tiles>(p, host, engine)),
        steps{p, 0},
        recurrence(p, host, engine, plan, history),
        order{G, p.H, W} {
    row_size = plan.unit_vectors * G * W;
    const int64_t vectors = Product::panels(order.vectors()) * Product::vectors;
    packed = scratch<typename ChunkEngine::Weight>(host, chunk_engine.packed_size(p.I, vectors));
    bias = packed_bias<C>(p.weights[bias_ih], order, vectors, host);
    projected = scratch<S>(host, plan.chunk * p.B * row_size);
    row_buffer_size = engine.row_buffer_size(plan.chunk * p.B, p.P > p.H ? p.P : p.H);
    row_buffer = scratch<typename Engine::RowBuffer>(host, host.threads * row_buffer_size);
    x_size = chunk_engine.row_buffer_size(plan.chunk * p.B, p.I);
    x_row_buffer =
        scratch<typename ChunkEngine::RowBuffer>(host, (ChunkEngine::copies_operands ? plan.row_parts : host.threads) * x_size);
    flags = scratch<uint8_t>(host, 2 * host.threads * p.B);
    step_views = scratch<StepView>(host, host.threads * plan.chunk);
    __builtin_memset(flags, 0, size_t(2 * host.threads * p.B));
    all_parts = scratch<ThreadView>(host, host.threads);
    for (int i = 0; i < host.threads; ++i) all_parts[i] = part_of_work(i);
  }

  // Runs the whole problem.
  static void run(const Forward<S>& problem, const Host& host) {
    Team team(host);
    History<S> history{problem, problem.B * ceil_div(problem.H, W) * C::saved * W};
    history.checkpoint_interval = problem.every;
    history.window_rows = 2;
    for (int i = 0; problem.every && i < C::states; ++i) history.window[i] = scratch<S>(host, 2 * problem.B * history.width(i));
    ForwardLoop loop(problem, host, team, history);
    const auto work = [](void* self, int thread) {
      const FlushSubnormals flush;
      ForwardLoop& loop = *static_cast<ForwardLoop*>(self);
      Unit unit(Poll(loop.team, thread));
      loop.team.enter(thread);
      if (loop.team.each(thread, [&](int part) { loop.pack(part, unit.steps()); })) loop.advance(thread, unit, 0, loop.p.T);
    };
    host.run(host.context, work, &loop);
  }

  // Packs one part of the weights, before anything else runs.
  TT_PHASE void pack(int part, Poll& poll) {
    in_pieces(share(order.vectors(), host.threads, part), p.I * W, poll, [&](Range own) {
      chunk_engine.template pack_rows<Product::vectors>(p.weights[weight_ih], p.I, order, own, packed);
    });
    recurrence.pack(host.threads, part, poll);
  }

  // Runs steps `first` to `last` - 1. False if the call must stop.
  bool advance(int thread, Unit& unit, int64_t first, int64_t last) {
    const auto each = each_part(thread, unit);
    if constexpr (Engine::copies_operands)
      if (!each([&](const ThreadView& view) { recurrence.split_states(view, first); })) return false;
    for (int64_t begin = first; begin < last; begin += plan.chunk) {
      const int64_t end = begin + plan.chunk < last ? begin + plan.chunk : last;
      if (team.interrupted(thread) || !project(each, begin, end) || !take_steps(thread, unit, begin, end)) return false;
    }
    if (recurrence.streams_saved()) stream_fence();
    return true;
  }

  // Recomputes the saved values of steps `begin` to `end` - 1, at most a chunk, from states that are all stored. The steps are
  // independent, so one recurrent product serves them all. False if the call must stop.
  bool recompute_saved(int thread, Unit& unit, int64_t begin, int64_t end) {
    const auto each = each_part(thread, unit);
    if (!project(each, begin, end) || !each([&](const ThreadView& view) { recurrence.recompute_first(view, begin, end); }))
      return false;
    if constexpr (two_products && !C::projects)
      return each([&](const ThreadView& view) { recurrence.recompute_second(view, begin, end); });
    return true;
  }

 private:
  ThreadView part_of_work(int part) const {
    const Range b = plan.rows(p.B, part);
    return {part,
            b,
            plan.units(part),
            plan.hidden(part),
            row_buffer + part * row_buffer_size,
            flags + 2 * part * p.B,
            flags + (2 * part + 1) * p.B,
            projected + plan.chunk * b.begin * row_size,
            step_views + part * plan.chunk};
  }

  ThreadView view_of(int part, Unit& unit) const {
    ThreadView own = all_parts[part];
    own.unit = &unit;
    return own;
  }

  // each(body): one phase of the team, with body(view) for every part.
  auto each_part(int thread, Unit& unit) const {
    return [this, thread, &unit](const auto& body) { return team.each(thread, [&](int part) { body(view_of(part, unit)); }); };
  }

  // Parts that share no sequence do not wait for each other within a chunk. A product of two halves waits between its halves.
  bool take_steps(int thread, Unit& unit, int64_t begin, int64_t end) {
    if constexpr (Tiles::halves && C::phases == Phases::one)
      if (plan.unit_parts > 1)
        return team.overlapped(thread, end - begin, [&](int part, int64_t i, const auto& finished) {
          const ThreadView own = view_of(part, unit);
          recurrence.take_step(own, recurrence.step_view(own, begin + i, begin), when(finished));
        });
    const auto each = each_part(thread, unit);
    if (plan.unit_parts > 1) return steps_of_chunk(each, begin, end);
    return each([&](const ThreadView& view) { steps_of_chunk(OnePart<ThreadView>{view}, begin, end); });
  }

  template <class Each>
  bool steps_of_chunk(const Each& each, int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      if (!each([&](const ThreadView& view) { recurrence.take_step(view, recurrence.step_view(view, s, begin), {}); }))
        return false;
      if constexpr (two_products) {
        if (!each([&](const ThreadView& view) { recurrence.second_product(view, recurrence.step_view(view, s, begin)); }))
          return false;
      } else if constexpr (C::phases == Phases::rows) {
        if (!each([&](const ThreadView& view) { recurrence.apply_rows(view, recurrence.step_view(view, s, begin)); }))
          return false;
      }
    }
    return true;
  }

  // Computes x W^T + b of a chunk.
  template <class Each>
  bool project(const Each& each, int64_t begin, int64_t end) {
    // If operands are copies, parts that share sequences make them together.
    if (ChunkEngine::copies_operands && !each([&](const ThreadView& view) {
          const int64_t count = (end - begin) * view.count();
          set_inputs(view, begin, count, share(count, plan.unit_parts, view.part % plan.unit_parts));
        }))
      return false;
    return each([&](const ThreadView& view) { project(view, begin, end); });
  }

  TT_PHASE auto set_inputs(const ThreadView& view, int64_t begin, int64_t count, Range range) const {
    const int64_t own = view.count(), place = ChunkEngine::copies_operands ? view.part / plan.unit_parts : view.part;
    const auto rows = chunk_engine.rows(x_row_buffer + place * x_size, count, p.I);
    for (int64_t r = range.begin; r < range.end; ++r) {
      const int64_t s = begin + r / own, b = view.b.begin + r % own;
      rows.set(r, p.x.data + steps.time(s) * p.x.time + b * p.x.batch, p.I);
    }
    return rows;
  }

  TT_PHASE void project(const ThreadView& view, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * view.count(), vectors = view.j.end * G;
    const auto rows = set_inputs(view, begin, count, {ChunkEngine::copies_operands ? count : 0, count});
    const Panels panels{view.j.begin * G / Product::vectors, Product::panels(vectors)};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += Product::vectors)
        for (int v = 0; v < Product::vectors && q + v < vectors; ++v)
          store(recurrence.projected_at(view, view.projected, (q + v) / G, r) + (q + v) % G * W, sums[v]);
    };
    chunk_engine.template product<Product>(p.I, rows, {0, count}, packed, panels, bias, sink<S>(put), view.unit->chunks());
  }

  const Forward<S>& p;
  const Host& host;
  Team& team;
  Engine engine;
  ChunkEngine chunk_engine;
  Plan plan;
  Steps<S> steps;
  Recurrence recurrence;
  Interleaved order;
  int64_t row_size, row_buffer_size, x_size;
  typename ChunkEngine::Weight* packed;
  S *bias, *projected;  // gates interleaved
  typename Engine::RowBuffer* row_buffer;
  typename ChunkEngine::RowBuffer* x_row_buffer;
  uint8_t* flags;
  StepView* step_views;
  ThreadView* all_parts;
};

}  // namespace throughtime::TT_ISA
