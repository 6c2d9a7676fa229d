// The time loop, forward: per chunk of steps one product for the chunk's x W^T + b, then step by step the recurrent product into
// registers and the cell on those same registers; after that, where the cell has a second phase, all threads met and its second
// product or its whole rows. Knows no equation; the cell knows no memory.
#pragma once

#include "history.hpp"
#include "operand.hpp"
#include "row.hpp"
#include "unit_weights.hpp"
#include "zoneout.hpp"

namespace throughtime::TT_ISA {

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
  static constexpr int first_state = C::projects ? 1 : 0;  // of those that the cell's equations give

 public:
  static void* operator new(size_t, void* place) { return place; }
  using Unit = Units<Engine, ChunkEngine>;

  // What one part of the work is.
  struct Mine {
    int part;
    Range b, j, q;                // sequences, vectors of units and of features of h
    typename Engine::Room* room;  // for a row of the chunk each
    uint8_t *rules, *next_rules;  // of the step and the one after it, one a sequence
    S* projected;                 // (units, chunk steps, own sequences, gates, lanes)
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
    rules = scratch<uint8_t>(host, 2 * host.threads * p.B);
    moments = scratch<Moment>(host, host.threads * plan.chunk);
    __builtin_memset(zeros, 0, size_t(p.P) * sizeof(S));
    __builtin_memset(rules, 0, size_t(2 * host.threads * p.B));
    all_parts = scratch<Mine>(host, host.threads);
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
    history.apart = problem.every;
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
      if (!each([&](const Mine& mine) { split_states(mine, first); })) return false;
    for (int64_t begin = first; begin < last; begin += plan.chunk) {
      const int64_t end = begin + plan.chunk < last ? begin + plan.chunk : last;
      if (team.interrupted(thread) || !project(each, begin, end) || !take_steps(thread, unit, begin, end)) return false;
    }
    if (streams) stream_fence();
    return true;
  }

  // What steps `begin` to `end` - 1, at most a chunk of them, saved: again, from states that are all kept. No step waits for
  // another, so their recurrent products are one. False when the call is to stop.
  bool save_again(int thread, Unit& unit, int64_t begin, int64_t end) {
    const auto each = each_part(thread, unit);
    if (!project(each, begin, end) || !each([&](const Mine& mine) { evaluate_again(mine, begin, end); })) return false;
    if constexpr (two_products && !C::projects) return each([&](const Mine& mine) { finish_again(mine, begin, end); });
    return true;
  }

 private:
  // Where one step finds its rows.
  struct Moment {
    int64_t s, t;
    const S* projected;          // of the first vector of units: (own sequences, gates, lanes)
    const S* before[C::states];  // (B, H)
    S* after[C::states];
    S* saved;  // or null
  };

  Mine part_of_work(int part) const {
    const Range b = plan.rows(p.B, part);
    return {part,
            b,
            plan.units(part),
            plan.hidden(part),
            room + part * room_size,
            rules + 2 * part * p.B,
            rules + (2 * part + 1) * p.B,
            projected + plan.chunk * b.begin * row_size};
  }

  Mine mine(int part, Unit& unit) const {
    Mine own = all_parts[part];
    own.unit = &unit;
    return own;
  }

  // each(body): a phase of the team's, body(mine) for every part.
  auto each_part(int thread, Unit& unit) const {
    return [this, thread, &unit](const auto& body) { return team.each(thread, [&](int part) { body(mine(part, unit)); }); };
  }

  // Where parts share no sequence, none waits for another before the chunk's end; a product of two halves waits between them.
  bool take_steps(int thread, Unit& unit, int64_t begin, int64_t end) {
    if constexpr (Tiles::halves && C::phases == Phases::one)
      if (plan.unit_parts > 1)
        return team.overlapped(thread, end - begin, [&](int part, int64_t i, const auto& finished) {
          const Mine own = mine(part, unit);
          step(own, moment(own, begin + i, begin), when(finished));
        });
    const auto each = each_part(thread, unit);
    if (plan.unit_parts > 1) return steps_of_chunk(each, begin, end);
    return each([&](const Mine& mine) { steps_of_chunk(OnePart<Mine>{mine}, begin, end); });
  }

  template <class Each>
  bool steps_of_chunk(const Each& each, int64_t begin, int64_t end) {
    const auto at = [&](const Mine& mine, int64_t s) { return moment(mine, s, begin); };
    for (int64_t s = begin; s < end; ++s) {
      if (!each([&](const Mine& mine) { step(mine, at(mine, s), {}); })) return false;
      if constexpr (two_products) {
        if (!each([&](const Mine& mine) { second_product(mine, at(mine, s)); })) return false;
      } else if constexpr (C::phases == Phases::rows) {
        if (!each([&](const Mine& mine) { apply_rows(mine, at(mine, s)); })) return false;
      }
    }
    return true;
  }

  // The cells of a chunk, from states that are all kept.
  TT_PHASE void evaluate_again(const Mine& mine, int64_t begin, int64_t end) {
    Moment* at = moments + mine.part * plan.chunk;
    const int64_t count = mine.count(), own = plan.chunk * mine.b.begin;
    const Range all{0, (end - begin) * count};
    const Rows rows = engine.rows(mine.room, all.end, p.P);
    for (int64_t s = begin; s < end; ++s) {
      at[s - begin] = moment(mine, s, begin);
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        rows.set((s - begin) * count + b - mine.b.begin, starts(s, b) ? zeros : at[s - begin].before[0] + b * p.P, p.P);
    }
    const auto put = [&](int64_t first, int number, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + number; ++r, sums += units * R)
        for (int u = 0; u < units && q / R + u < mine.j.end; ++u) {
          const int64_t s = int(r) / int(count), b = mine.b.begin + int(r) % int(count), j = q / R + u;
          V old[C::states], next[C::states], m;
          evaluate(mine, at[s], b, j, starts(begin + s, b), sums + u * R, old, next, m);
          if constexpr (two_products) middle.put(own + r, j * L, m);
        }
    };
    engine.template product<typename Tiles::Again>(p.P, rows, all, recurrent_packed, panels_of<units>(mine.j, 0), recurrent_bias,
                                                   sink<S>(put), mine.unit->steps());
  }

  // And their second products.
  TT_PHASE void finish_again(const Mine& mine, int64_t begin, int64_t end) {
    const Moment* at = moments + mine.part * plan.chunk;
    const int64_t count = mine.count(), own = plan.chunk * mine.b.begin;
    const Range all{0, (end - begin) * count};
    const auto finish = [&](int64_t first, int number, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + number; ++r, sums += Second::units)
        for (int u = 0; u < Second::units && q + u < mine.q.end; ++u) {
          const int64_t s = int(r) / int(count), b = mine.b.begin + int(r) % int(count);
          V old[C::states], next[C::states];
          evaluate_second(mine, at[s], b, q + u, starts(begin + s, b), sums + u, old, next);
        }
    };
    engine.template product<typename Second::Again>(p.H, middle.rows(own, all, mine.room), all, second_packed,
                                                    panels_of<Second::units>(mine.q, 0), second_bias, sink<S>(finish),
                                                    mine.unit->steps());
  }

  TT_PHASE Moment moment(const Mine& mine, int64_t s, int64_t begin) const {
    Moment at{s, steps.time(s), mine.projected + (s - begin) * mine.count() * G * L, {}, {}, history.saved(steps, s)};
    if (C::phases != Phases::one && !at.saved) at.saved = spare;
    for (int i = 0; i < C::states; ++i) at.before[i] = history.state(i, s), at.after[i] = history.after(i, s + 1);
    return at;
  }

  // x W^T + b of a chunk.
  template <class Each>
  bool project(const Each& each, int64_t begin, int64_t end) {
    // Where rows are copies, parts that share sequences make them together.
    if (ChunkEngine::splits && !each([&](const Mine& mine) {
          const int64_t count = (end - begin) * mine.count();
          set_inputs(mine, begin, count, share(count, plan.unit_parts, mine.part % plan.unit_parts));
        }))
      return false;
    return each([&](const Mine& mine) { project(mine, begin, end); });
  }

  TT_PHASE auto set_inputs(const Mine& mine, int64_t begin, int64_t count, Range range) const {
    const int64_t own = mine.count(), place = ChunkEngine::splits ? mine.part / plan.unit_parts : mine.part;
    const auto rows = chunk_engine.rows(x_room + place * x_size, count, p.I);
    for (int64_t r = range.begin; r < range.end; ++r) {
      const int64_t s = begin + r / own, b = mine.b.begin + r % own;
      rows.set(r, p.x.data + steps.time(s) * p.x.time + b * p.x.batch, p.I);
    }
    return rows;
  }

  TT_PHASE void project(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * mine.count(), vectors = mine.j.end * G;
    const auto rows = set_inputs(mine, begin, count, {ChunkEngine::splits ? count : 0, count});
    const Panels panels{mine.j.begin * G / Product::vectors, Product::panels(vectors)};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += Product::vectors)
        for (int v = 0; v < Product::vectors && q + v < vectors; ++v)
          store(projected_at(mine, mine.projected, (q + v) / G, r) + (q + v) % G * L, sums[v]);
    };
    chunk_engine.template product<Product>(p.I, rows, {0, count}, weight_packed, panels, bias, sink<S>(put), mine.unit->chunks());
  }

  // As in saved_place: rows of the same units are neighbours.
  template <class P>
  TT_INLINE P* projected_at(const Mine& mine, P* first, int64_t j, int64_t row) const {
    return first + (j * plan.chunk * mine.count() + row) * G * L;
  }

  void find_rules(const Mine& mine, int64_t s) {
    if (!steps.ruled()) return;
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) {
      mine.rules[b] = uint8_t(steps.rule(s, b));
      mine.next_rules[b] = uint8_t(s + 1 < p.T ? steps.rule(s + 1, b) : 0);
    }
  }

  template <int units>
  static Panels panels_of(Range j, int64_t s) {
    return {j.begin / units, ceil_div(j.end, units), s % 2 != 0};
  }

  // The recurrent product and the cell. Where the product is two halves, it asks ready() between them; false: the call is to
  // stop.
  TT_PHASE void step(const Mine& mine, const Moment& at, const Ready& ready) {
    find_rules(mine, at.s);
    Rows rows;
    if constexpr (Engine::splits) {
      rows = hidden[at.s % 2];
    } else {
      rows = engine.rows(mine.room, p.B, p.P);
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        rows.set(b, mine.rules[b] & fresh ? zeros : at.before[0] + b * p.P, p.P);
    }
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += units * R)
        for (int u = 0; u < units && q / R + u < mine.j.end; ++u) apply(mine, at, b, q / R + u, sums + u * R);
    };
    const Panels panels = panels_of<units>(mine.j, at.s);
    if constexpr (Tiles::halves)
      engine.template product_of_halves<typename Tiles::Forward>(p.P, rows, mine.b, recurrent_packed, panels, recurrent_bias,
                                                                 sink<S>(put), {mine.q.begin * L, mine.q.end * L}, ready);
    else
      engine.template product<typename Tiles::Forward>(p.P, rows, mine.b, recurrent_packed, panels, recurrent_bias, sink<S>(put),
                                                       mine.unit->steps());
  }

  TT_PHASE void second_product(const Mine& mine, const Moment& at) {
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += Second::units)
        for (int u = 0; u < Second::units && q + u < mine.q.end; ++u) apply_second(mine, at, b, q + u, sums + u);
    };
    engine.template product<typename Second::Forward>(p.H, middle.rows(0, mine.b, mine.room), mine.b, second_packed,
                                                      panels_of<Second::units>(mine.q, at.s), second_bias, sink<S>(put),
                                                      mine.unit->steps());
  }

  // The cell of one vector of units of one sequence; r is the recurrent part of its pre-activations.
  TT_INLINE void apply(const Mine& mine, const Moment& at, int64_t b, int64_t j, const V* r) {
    V old[C::states], next[C::states], m;
    evaluate(mine, at, b, j, mine.rules[b] & fresh, r, old, next, m);
    if constexpr (two_products) middle.put(b, j * L, m);
    if constexpr (C::phases == Phases::one) put_state<0>(mine, at, b, j, old[0], next[0]);
    if constexpr (C::states == 2 && (C::phases == Phases::one || C::projects)) put_state<1>(mine, at, b, j, old[1], next[1]);
  }

  // Its second phase; r is the second product.
  TT_INLINE void apply_second(const Mine& mine, const Moment& at, int64_t b, int64_t q, const V* r) {
    V old[C::states], next[C::states];
    if constexpr (C::projects) {
      old[0] = mine.rules[b] & fresh ? V{} : load_some<V>(at.before[0] + b * p.P + q * L, p.P - q * L);
      next[0] = *r;
    } else {
      evaluate_second(mine, at, b, q, mine.rules[b] & fresh, r, old, next);
    }
    put_state<0>(mine, at, b, q, old[0], next[0]);
  }

  TT_INLINE void evaluate(const Mine& mine, const Moment& at, int64_t b, int64_t j, bool starts, const V* r, V (&old)[C::states],
                          V (&next)[C::states], V& m) {
    V x[G], a[C::saved + 1] = {};
    load_inputs(mine, at, b, j, starts, old, x);
    if constexpr (two_products) {
      C::forward(x, r, old, next, a, &m);
      m = keep_some<S>(m, p.H - j * L);
    } else if constexpr (C::phases == Phases::one && unit_values<C>() > 0) {
      C::forward(x, r, old, load_units<unit_values<C>()>(unit_packed, j).value, next, a);
    } else {
      C::forward(x, r, old, next, a);
    }
    if (at.saved) save(at, b, j, a);
  }

  TT_INLINE void evaluate_second(const Mine& mine, const Moment& at, int64_t b, int64_t j, bool starts, const V* r,
                                 V (&old)[C::states], V (&next)[C::states]) {
    V x[G], a[C::saved];
    load_inputs(mine, at, b, j, starts, old, x);
    for (int i = 0; i < C::saved; ++i) a[i] = load<V>(saved_at(at, b, j) + i * L);
    C::finish(x, r, old, next, a);
    save(at, b, j, a);
  }

  TT_INLINE void load_inputs(const Mine& mine, const Moment& at, int64_t b, int64_t j, bool starts, V (&old)[C::states],
                             V (&x)[G]) const {
    const S* projection = projected_at(mine, at.projected, j, b - mine.b.begin);
    for (int i = first_state; i < C::states; ++i)
      old[i] = starts ? V{} : load_some<V>(at.before[i] + b * p.H + j * L, p.H - j * L);
    for (int g = 0; g < G; ++g) x[g] = load<V>(projection + g * L);
  }

  S* saved_at(const Moment& at, int64_t b, int64_t j) const {
    return at.saved + saved_place<C>(b, j, p.B, plan.unit_vectors) * C::saved * L;
  }

  template <int n>
  TT_INLINE void save(const Moment& at, int64_t b, int64_t j, const V (&a)[n]) const {
    S* saved = saved_at(at, b, j);
    for (int i = 0; i < C::saved; ++i) streams ? stream(saved + i * L, a[i]) : store(saved + i * L, a[i]);
  }

  // State i of units j after the step.
  template <int i>
  TT_INLINE void put_state(const Mine& mine, const Moment& at, int64_t b, int64_t j, V old, V next) const {
    const int64_t width = i == 0 && C::projects ? p.P : p.H, n = width - j * L;
    const bool still = mine.rules[b] & inactive;
    if (zoned[i]) next = zoneout.mix(zoneout.part(i, at.t, b, j), old, next);
    if (i == 0 && p.output.data)
      store_some(p.output.data + at.t * p.output.time + b * p.output.batch + j * L, still ? V{} : next, n);
    const V after = still ? old : next;
    store_some(at.after[i] + b * width + j * L, after, n);
    if constexpr (Engine::splits)
      if (i == 0) put_split(at.s + 1, b, j, mine.next_rules[b], after);
  }

  // A row whose states go where `put_state` says.
  struct Row : WholeRow<C, S> {
    const ForwardLoop& loop;
    const Mine& mine;
    const Moment& at;
    int64_t b;

    int variant() const { return loop.p.variant; }
    template <int i>
    TT_INLINE void set_next(int64_t j, V next) const {
      const S* before = at.before[i] + b * loop.p.H + j * L;
      const V old = mine.rules[b] & fresh ? V{} : load_some<V>(before, loop.p.H - j * L);
      loop.template put_state<i>(mine, at, b, j, old, next);
    }
  };

  TT_PHASE void apply_rows(const Mine& mine, const Moment& at) {
    const Range own = plan.whole_rows(p.B, mine.part);
    for (int64_t b = own.begin; b < own.end; ++b) {
      const S* c = mine.rules[b] & fresh ? nullptr : at.before[C::states - 1] + b * p.H;
      Row row{{p.H, saved_at(at, b, 0), c, unit_packed, notes + mine.part * Row::notes_size(p.H)}, *this, mine, at, b};
      C::forward_row(row);
    }
  }

  // h as the left operand of step s. Lanes past H may be NaN, from an infinite input times their zero weights.
  TT_INLINE void put_split(int64_t s, int64_t b, int64_t j, int rule, V h) const {
    hidden[s % 2].put(b, j * L, rule & fresh ? V{} : keep_some<S>(h, p.P - j * L));
  }

  TT_PHASE void split_states(const Mine& mine, int64_t s) const {
    const S* before = history.state(0, s);
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
      for (int64_t j = mine.q.begin; j < mine.q.end; ++j)
        put_split(s, b, j, starts(s, b) ? fresh : 0, load_some<V>(before + b * p.P + j * L, p.P - j * L));
  }

  bool starts(int64_t s, int64_t b) const { return steps.ruled() && steps.rule(s, b) & fresh; }

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
  uint8_t* rules;
  Moment* moments;
  Mine* all_parts;
  Rows hidden[2];             // where left operands are copies: h before a step, and before the one after it
  Operand<S, Engine> middle;  // of the second product
  S* spare = nullptr;         // what the cell saves for its second phase, where nothing is kept: of one step
  S* notes;                   // one row a thread
};

}  // namespace throughtime::TT_ISA
