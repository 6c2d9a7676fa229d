// The time loop, forward: per chunk of steps one product for the chunk's x W^T + b, then step by step the recurrent product into
// registers and the cell on those same registers; after that, where the cell has a second phase, all threads met and its second
// product or its whole rows. Knows no equation; the cell knows no memory.
#pragma once

#include "../step/forward.hpp"
#include "history.hpp"
#include "operand.hpp"
#include "row.hpp"
#include "unit_weights.hpp"

namespace throughtime::TT_ISA {

// Zoneout's fraction of the old state i of units j.
template <class S>
TT_INLINE Vec<S> zoneout_fraction(const Zoneout<S>& zoneout, int i, int64_t t, int64_t b, int64_t j) {
  const auto load = [](const uint8_t* from, int64_t count) __attribute__((always_inline)) { return load_bytes<S>(from, count); };
  return zoneout.template fraction<Vec<S>>(i, t, b, j * lanes<S>, load);
}

template <class C, class S, class Tiles>
class ForwardLoop {
  using V = Vec<S>;
  using Engine = typename Tiles::Engine;
  using ChunkEngine = typename Tiles::ChunkEngine;
  using Product = typename Tiles::Product;
  using Rows = typename Engine::Rows;
  using Weight = typename Engine::Weight;
  using Second = typename Tiles::template With<1>;
  static constexpr int L = lanes<S>, G = C::gates, R = C::recurrent, units = Tiles::units;
  static constexpr bool two_products = C::phases == Phases::two_products;

 public:
  static void* operator new(size_t, void* place) { return place; }
  using Unit = Units<Engine, ChunkEngine>;

  // The rows of one step.
  struct StepView {
    int64_t s, t;
    const S* projected;          // of the first vector of units: (own sequences, gates, lanes)
    const S* before[C::states];  // (B, H)
    S* after[C::states];
    S* saved;  // or null
  };

  // One part of the work.
  struct ThreadView {
    int part;
    Range b, j, q;                // sequences, vectors of units and of features of h
    typename Engine::Room* room;  // for a row of the chunk each
    uint8_t *flags, *next_flags;  // of the step and the one after it, one a sequence
    S* projected;                 // (units, chunk steps, own sequences, gates, lanes)
    StepView* chunk;              // the steps of a chunk that is computed again
    Unit* unit = nullptr;         // of the thread that runs it
    int64_t count() const { return b.end - b.begin; }
  };

  ForwardLoop(const Forward<S>& problem, const Host& host, Team& team, const History<S>& history)
      : p(problem),
        host(host),
        team(team),
        engine(host),
        chunk_engine(host),
        plan(make_plan<C, Tiles>(p, host, engine)),
        steps{p, 0},
        history(history),
        zoneout{p},
        order{G, p.H, L},
        recurrent_order{R, p.H, L},
        second_order{1, p.P, L} {
    row_size = plan.unit_vectors * G * L;
    const int64_t projection_vectors = Product::panels(order.vectors()) * Product::vectors;
    const int64_t recurrent_vectors = ceil_div(plan.unit_vectors, units) * units * R;
    weight_packed = scratch<typename ChunkEngine::Weight>(host, chunk_engine.packed_size(p.I, projection_vectors));
    recurrent_packed = scratch<Weight>(host, engine.packed_size(p.P, recurrent_vectors));
    bias = packed_bias(p.weights[bias_ih], order, projection_vectors);
    recurrent_bias = packed_bias(p.weights[bias_hh], recurrent_order, recurrent_vectors);
    projected = scratch<S>(host, plan.chunk * p.B * row_size);
    zeros = scratch<S>(host, p.P);
    room_size = engine.room_size(plan.chunk * p.B, p.P > p.H ? p.P : p.H);
    room = scratch<typename Engine::Room>(host, host.threads * room_size);
    x_size = chunk_engine.room_size(plan.chunk * p.B, p.I);
    x_room = scratch<typename ChunkEngine::Room>(host, (ChunkEngine::splits ? plan.row_parts : host.threads) * x_size);
    flags = scratch<uint8_t>(host, 2 * host.threads * p.B);
    step_views = scratch<StepView>(host, host.threads * plan.chunk);
    __builtin_memset(zeros, 0, size_t(p.P) * sizeof(S));
    __builtin_memset(flags, 0, size_t(2 * host.threads * p.B));
    all_parts = scratch<ThreadView>(host, host.threads);
    for (int i = 0; i < host.threads; ++i) all_parts[i] = part_of_work(i);
    if constexpr (Engine::splits)
      for (Rows& rows : hidden) {
        const int64_t size = engine.room_size(p.B, p.P);
        rows = engine.rows(scratch<Weight>(host, size), p.B, p.P);
        __builtin_memset(rows.data, 0, size_t(size) * sizeof(Weight));
      }
    if constexpr (C::phases != Phases::one) prepare_second();
    if constexpr (unit_values<C>() > 0) unit_packed = pack_unit_weights<C>(p, host);
  }

  void prepare_second() {
    if (!history.keeps()) spare = scratch<S>(host, history.saved_size);
    if constexpr (two_products) {
      const int64_t vectors = ceil_div(plan.hidden_vectors, Second::units) * Second::units;
      second_packed = scratch<Weight>(host, engine.packed_size(p.H, vectors));
      second_bias = packed_bias(second_part<C>(p.weights, p, bias_hh), second_order, vectors);
      middle = Operand<S, Engine>(engine, host, (history.saved_window ? plan.chunk : 1) * p.B, plan.unit_vectors * L, false);
    } else {
      notes = scratch<S>(host, host.threads * Row::notes_size(p.H));
    }
  }

  S* packed_bias(const S* from, Interleaved order, int64_t vectors) const {
    S* packed = scratch<S>(host, vectors * L);
    __builtin_memset(packed, 0, size_t(vectors * L) * sizeof(S));
    pack_vector(C::bias_inside ? nullptr : from, order, packed);
    return packed;
  }

  // The whole problem, by itself.
  static void run(const Forward<S>& problem, const Host& host) {
    Team team(host);
    History<S> history{problem, problem.B * ceil_div(problem.H, L) * C::saved * L};
    history.checkpoint_interval = problem.every;
    history.window_rows = 2;
    for (int i = 0; problem.every && i < C::states; ++i) history.window[i] = scratch<S>(host, 2 * problem.B * history.width(i));
    ForwardLoop loop(problem, host, team, history);
    const auto work = [](void* self, int thread) {
      const FlushSubnormals flush;
      ForwardLoop& loop = *static_cast<ForwardLoop*>(self);
      Unit unit;
      loop.team.enter(thread);
      if (loop.team.each(thread, [&](int part) { loop.pack(part); })) loop.advance(thread, unit, 0, loop.p.T);
    };
    host.run(host.context, work, &loop);
  }

  // A part of the weights, before anything else.
  TT_PHASE void pack(int part) {
    const Range own = share(order.vectors(), host.threads, part);
    chunk_engine.template pack_rows<Product::vectors>(p.weights[weight_ih], p.I, order, own, weight_packed);
    const Range recurrent = share(recurrent_order.vectors(), host.threads, part);
    engine.template pack_rows<units * R>(p.weights[weight_hh], p.P, recurrent_order, recurrent, recurrent_packed);
    if constexpr (two_products)
      engine.template pack_rows<Second::units>(second_part<C>(p.weights, p, weight_hh), p.H, second_order,
                                               share(second_order.vectors(), host.threads, part), second_packed);
  }

  // Steps `first` to `last` - 1; false when the call is to stop.
  bool advance(int thread, Unit& unit, int64_t first, int64_t last) {
    const auto each = each_part(thread, unit);
    if constexpr (Engine::splits)
      if (!each([&](const ThreadView& view) { split_states(view, first); })) return false;
    for (int64_t begin = first; begin < last; begin += plan.chunk) {
      const int64_t end = begin + plan.chunk < last ? begin + plan.chunk : last;
      if (team.interrupted(thread) || !project(each, begin, end) || !take_steps(thread, unit, begin, end)) return false;
    }
    if (streams) stream_fence();
    return true;
  }

  // What steps `begin` to `end` - 1, at most a chunk of them, saved: again, from states that are all kept. No step waits for
  // another, so their recurrent products are one. False when the call is to stop.
  bool recompute_saved(int thread, Unit& unit, int64_t begin, int64_t end) {
    const auto each = each_part(thread, unit);
    if (!project(each, begin, end) || !each([&](const ThreadView& view) { recompute_first(view, begin, end); })) return false;
    if constexpr (two_products && !C::projects) return each([&](const ThreadView& view) { recompute_second(view, begin, end); });
    return true;
  }

 private:
  ThreadView part_of_work(int part) const {
    const Range b = plan.rows(p.B, part);
    return {part,
            b,
            plan.units(part),
            plan.hidden(part),
            room + part * room_size,
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

  // each(body): a phase of the team's, body(view) for every part.
  auto each_part(int thread, Unit& unit) const {
    return [this, thread, &unit](const auto& body) { return team.each(thread, [&](int part) { body(view_of(part, unit)); }); };
  }

  // Where parts share no sequence, none waits for another before the chunk's end; a product of two halves waits between them.
  bool take_steps(int thread, Unit& unit, int64_t begin, int64_t end) {
    if constexpr (Tiles::halves && C::phases == Phases::one)
      if (plan.unit_parts > 1)
        return team.overlapped(thread, end - begin, [&](int part, int64_t i, const auto& finished) {
          const ThreadView own = view_of(part, unit);
          take_step(own, step_view(own, begin + i, begin), when(finished));
        });
    const auto each = each_part(thread, unit);
    if (plan.unit_parts > 1) return steps_of_chunk(each, begin, end);
    return each([&](const ThreadView& view) { steps_of_chunk(OnePart<ThreadView>{view}, begin, end); });
  }

  template <class Each>
  bool steps_of_chunk(const Each& each, int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      if (!each([&](const ThreadView& view) { take_step(view, step_view(view, s, begin), {}); })) return false;
      if constexpr (two_products) {
        if (!each([&](const ThreadView& view) { second_product(view, step_view(view, s, begin)); })) return false;
      } else if constexpr (C::phases == Phases::rows) {
        if (!each([&](const ThreadView& view) { apply_rows(view, step_view(view, s, begin)); })) return false;
      }
    }
    return true;
  }

  // The cells of a chunk, from states that are all kept.
  TT_PHASE void recompute_first(const ThreadView& view, int64_t begin, int64_t end) {
    const Range all{0, (end - begin) * view.count()};
    const Rows rows = engine.rows(view.room, all.end, p.P);
    for (int64_t s = begin; s < end; ++s) {
      const StepView& step = view.chunk[s - begin] = step_view(view, s, begin);
      for (int64_t b = view.b.begin; b < view.b.end; ++b)
        rows.set((s - begin) * view.count() + b - view.b.begin, starts(s, b) ? zeros : step.before[0] + b * p.P, p.P);
    }
    const auto put = [&](int64_t first, int number, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + number; ++r, sums += units * R)
        for (int u = 0; u < units && q / R + u < view.j.end; ++u) {
          V old[C::states], next[C::states];
          recomputed_step(view, r, q / R + u).evaluate(sums + u * R, old, next);
        }
    };
    engine.template product<typename Tiles::Again>(p.P, rows, all, recurrent_packed, panels_of<units>(view.j, 0), recurrent_bias,
                                                   sink<S>(put), view.unit->steps());
  }

  // And their second products.
  TT_PHASE void recompute_second(const ThreadView& view, int64_t begin, int64_t end) {
    const int64_t own = plan.chunk * view.b.begin;
    const Range all{0, (end - begin) * view.count()};
    const auto finish = [&](int64_t first, int number, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + number; ++r, sums += Second::units)
        for (int u = 0; u < Second::units && q + u < view.q.end; ++u) {
          V old[C::states], next[C::states];
          recomputed_step(view, r, q + u).evaluate_second(sums + u, old, next);
        }
    };
    engine.template product<typename Second::Again>(p.H, middle.rows(own, all, view.room), all, second_packed,
                                                    panels_of<Second::units>(view.q, 0), second_bias, sink<S>(finish),
                                                    view.unit->steps());
  }

  TT_PHASE StepView step_view(const ThreadView& view, int64_t s, int64_t begin) const {
    StepView step{s, steps.time(s), view.projected + (s - begin) * view.count() * G * L, {}, {}, history.saved(steps, s)};
    if (C::phases != Phases::one && !step.saved) step.saved = spare;
    for (int i = 0; i < C::states; ++i) step.before[i] = history.state(i, s), step.after[i] = history.after(i, s + 1);
    return step;
  }

  // x W^T + b of a chunk.
  template <class Each>
  bool project(const Each& each, int64_t begin, int64_t end) {
    // Where rows are copies, parts that share sequences make them together.
    if (ChunkEngine::splits && !each([&](const ThreadView& view) {
          const int64_t count = (end - begin) * view.count();
          set_inputs(view, begin, count, share(count, plan.unit_parts, view.part % plan.unit_parts));
        }))
      return false;
    return each([&](const ThreadView& view) { project(view, begin, end); });
  }

  TT_PHASE auto set_inputs(const ThreadView& view, int64_t begin, int64_t count, Range range) const {
    const int64_t own = view.count(), place = ChunkEngine::splits ? view.part / plan.unit_parts : view.part;
    const auto rows = chunk_engine.rows(x_room + place * x_size, count, p.I);
    for (int64_t r = range.begin; r < range.end; ++r) {
      const int64_t s = begin + r / own, b = view.b.begin + r % own;
      rows.set(r, p.x.data + steps.time(s) * p.x.time + b * p.x.batch, p.I);
    }
    return rows;
  }

  TT_PHASE void project(const ThreadView& view, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * view.count(), vectors = view.j.end * G;
    const auto rows = set_inputs(view, begin, count, {ChunkEngine::splits ? count : 0, count});
    const Panels panels{view.j.begin * G / Product::vectors, Product::panels(vectors)};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += Product::vectors)
        for (int v = 0; v < Product::vectors && q + v < vectors; ++v)
          store(projected_at(view, view.projected, (q + v) / G, r) + (q + v) % G * L, sums[v]);
    };
    chunk_engine.template product<Product>(p.I, rows, {0, count}, weight_packed, panels, bias, sink<S>(put), view.unit->chunks());
  }

  // As in saved_place: rows of the same units are neighbours.
  template <class P>
  TT_INLINE P* projected_at(const ThreadView& view, P* first, int64_t j, int64_t row) const {
    return first + (j * plan.chunk * view.count() + row) * G * L;
  }

  void find_flags(const ThreadView& view, int64_t s) {
    if (!steps.ruled()) return;
    for (int64_t b = view.b.begin; b < view.b.end; ++b) {
      view.flags[b] = uint8_t(steps.flags(s, b));
      view.next_flags[b] = uint8_t(s + 1 < p.T ? steps.flags(s + 1, b) : 0);
    }
  }

  template <int units>
  static Panels panels_of(Range j, int64_t s) {
    return {j.begin / units, ceil_div(j.end, units), s % 2 != 0};
  }

  // The recurrent product and the cell. Where the product is two halves, it asks ready() between them; false: the call is to
  // stop.
  TT_PHASE void take_step(const ThreadView& view, const StepView& step, const Ready& ready) {
    find_flags(view, step.s);
    Rows rows;
    if constexpr (Engine::splits) {
      rows = hidden[step.s % 2];
    } else {
      rows = engine.rows(view.room, p.B, p.P);
      for (int64_t b = view.b.begin; b < view.b.end; ++b)
        rows.set(b, view.flags[b] & reset ? zeros : step.before[0] + b * p.P, p.P);
    }
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += units * R)
        for (int u = 0; u < units && q / R + u < view.j.end; ++u) cell_step(view, step, b, q / R + u).run(sums + u * R);
    };
    const Panels panels = panels_of<units>(view.j, step.s);
    if constexpr (Tiles::halves)
      engine.template product_of_halves<typename Tiles::Forward>(p.P, rows, view.b, recurrent_packed, panels, recurrent_bias,
                                                                 sink<S>(put), {view.q.begin * L, view.q.end * L}, ready);
    else
      engine.template product<typename Tiles::Forward>(p.P, rows, view.b, recurrent_packed, panels, recurrent_bias, sink<S>(put),
                                                       view.unit->steps());
  }

  TT_PHASE void second_product(const ThreadView& view, const StepView& step) {
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += Second::units)
        for (int u = 0; u < Second::units && q + u < view.q.end; ++u) cell_step(view, step, b, q + u).run_second(sums + u);
    };
    engine.template product<typename Second::Forward>(p.H, middle.rows(0, view.b, view.room), view.b, second_packed,
                                                      panels_of<Second::units>(view.q, step.s), second_bias, sink<S>(put),
                                                      view.unit->steps());
  }

  S* saved_at(const StepView& step, int64_t b, int64_t j) const {
    return step.saved + saved_place<C>(b, j, p.B, plan.unit_vectors) * C::saved * L;
  }

  // Vector j of units, or of features of h, of one sequence at one step; see step/forward.hpp.
  struct At {
    using V = Vec<S>;
    static constexpr bool keeps_first_phase = true;

    const ForwardLoop& loop;
    const ThreadView& view;
    const StepView& step;
    int64_t b, j;
    int flags;
    int64_t middle_row;  // of the second product's operand

    static TT_INLINE int64_t width(const Recurrence<S>& p, int i) { return i == 0 && C::projects ? p.P : p.H; }

    TT_INLINE V old_state(int i) const {
      const int64_t width = At::width(loop.p, i);
      return load_some<V>(step.before[i] + b * width + j * L, width - j * L);
    }
    TT_INLINE void load_inputs(V* x) const {
      const S* projection = loop.projected_at(view, step.projected, j, b - view.b.begin);
      for (int g = 0; g < G; ++g) x[g] = load<V>(projection + g * L);
    }
    TT_INLINE void load_unit_parameters(V* w) const { load_units<unit_values<C>()>(loop.unit_packed, j, w); }
    TT_INLINE bool zoned(int i) const { return loop.zoned[i]; }
    TT_INLINE V fraction(int i) const { return zoneout_fraction(loop.zoneout, i, step.t, b, j); }
    TT_INLINE void load_saved(V* a) const {
      for (int i = 0; i < C::saved; ++i) a[i] = load<V>(loop.saved_at(step, b, j) + i * L);
    }
    TT_INLINE void save(const V* a) const {
      if (!step.saved) return;
      S* saved = loop.saved_at(step, b, j);
      for (int i = 0; i < C::saved; ++i) loop.streams ? stream(saved + i * L, a[i]) : store(saved + i * L, a[i]);
    }
    TT_INLINE void set_middle(V m) const { loop.middle.put(middle_row, j * L, keep_some<S>(m, loop.p.H - j * L)); }
    TT_INLINE void set_output(V y) const {
      const View<S>& output = loop.p.output;
      if (output.data) store_some(output.data + step.t * output.time + b * output.batch + j * L, y, width(loop.p, 0) - j * L);
    }
    TT_INLINE void set_state(int i, V after) const {
      const int64_t width = At::width(loop.p, i);
      store_some(step.after[i] + b * width + j * L, after, width - j * L);
      if constexpr (Engine::splits)
        if (i == 0) loop.put_split(step.s + 1, b, j, view.next_flags[b], after);
    }
  };

  TT_INLINE ForwardStep<C, At> cell_step(const ThreadView& view, const StepView& step, int64_t b, int64_t j) const {
    return {{*this, view, step, b, j, view.flags[b], b}};
  }

  // Of row r of a chunk that is computed again.
  TT_INLINE ForwardStep<C, At> recomputed_step(const ThreadView& view, int64_t r, int64_t j) const {
    const int count = int(view.count());
    const StepView& step = view.chunk[int(r) / count];
    const int64_t b = view.b.begin + int(r) % count;
    return {{*this, view, step, b, j, starts(step.s, b) ? int(reset) : 0, plan.chunk * view.b.begin + r}};
  }

  // A row whose states go where the step stores them.
  struct Row : WholeRow<C, S> {
    const ForwardLoop& loop;
    const ThreadView& view;
    const StepView& step;
    int64_t b;

    template <int i>
    TT_INLINE void set_next(int64_t j, V next) const {
      const auto cell = loop.cell_step(view, step, b, j);
      cell.store_state(i, cell.old_state(i), next);
    }
  };

  TT_PHASE void apply_rows(const ThreadView& view, const StepView& step) {
    const Range own = plan.whole_rows(p.B, view.part);
    for (int64_t b = own.begin; b < own.end; ++b) {
      const S* c = view.flags[b] & reset ? nullptr : step.before[C::states - 1] + b * p.H;
      Row row{{p.H, saved_at(step, b, 0), c, unit_packed, notes + view.part * Row::notes_size(p.H)}, *this, view, step, b};
      C::forward_row(row);
    }
  }

  // h as the left operand of step s. Lanes past H may be NaN, from an infinite input times their zero weights.
  TT_INLINE void put_split(int64_t s, int64_t b, int64_t j, int flags, V h) const {
    hidden[s % 2].put(b, j * L, state_before(flags, keep_some<S>(h, p.P - j * L)));
  }

  TT_PHASE void split_states(const ThreadView& view, int64_t s) const {
    const S* before = history.state(0, s);
    for (int64_t b = view.b.begin; b < view.b.end; ++b)
      for (int64_t j = view.q.begin; j < view.q.end; ++j)
        put_split(s, b, j, starts(s, b) ? int(reset) : 0, load_some<V>(before + b * p.P + j * L, p.P - j * L));
  }

  bool starts(int64_t s, int64_t b) const { return steps.ruled() && steps.flags(s, b) & reset; }

  const Forward<S>& p;
  const Host& host;
  Team& team;
  Engine engine;
  ChunkEngine chunk_engine;
  Plan plan;
  Steps<S> steps;
  History<S> history;
  Zoneout<S> zoneout;
  const bool zoned[max_states] = {zoneout.any(0), zoneout.any(1)};
  // Large saved values bypass the cache: they would be evicted before the backward reads them.
  const bool streams = Engine::overlaps && C::phases == Phases::one && p.saved && streamable(p.saved, p.T* history.saved_size);
  Interleaved order, recurrent_order, second_order;
  int64_t row_size, room_size, x_size;
  typename ChunkEngine::Weight* weight_packed;
  Weight *recurrent_packed, *second_packed;
  S *bias, *recurrent_bias, *second_bias;  // interleaved
  const S* unit_packed;                    // (units, values, lanes)
  S *projected, *zeros;
  typename Engine::Room* room;
  typename ChunkEngine::Room* x_room;
  uint8_t* flags;
  StepView* step_views;
  ThreadView* all_parts;
  Rows hidden[2];             // where left operands are copies: h before a step, and before the one after it
  Operand<S, Engine> middle;  // of the second product
  S* spare = nullptr;         // what the cell saves for its second phase, where nothing is kept: of one step
  S* notes;                   // one row a thread
};

}  // namespace throughtime::TT_ISA
