// The time loop, forward: per chunk of steps one product for the chunk's x W^T + b, then step by step the recurrent product into
// registers and the cell on those same registers. Knows no equation; the cell knows no memory.
#pragma once

#include "history.hpp"
#include "plan.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class ForwardLoop {
  using V = Vec<S>;
  using Engine = typename Tiles::Engine;
  using Product = typename Tiles::Product;
  using Rows = typename Engine::Rows;
  using Weight = typename Engine::Weight;
  static constexpr int L = lanes<S>, G = C::gates, units = Tiles::units;

 public:
  static void* operator new(size_t, void* place) { return place; }

  // What one thread works on.
  struct Mine {
    int thread;
    typename Engine::Unit& unit;
    Range b, j;                   // sequences, vectors of units
    typename Engine::Room* room;  // for a row of the chunk each
    uint8_t *rules, *next_rules;  // of the step and the one after it, one a sequence
    S* projected;                 // (chunk steps, own sequences, row_size)
    int64_t count() const { return b.end - b.begin; }
  };

  ForwardLoop(const Forward<S>& problem, const Host& host, Team& team, const History<S>& history)
      : p(problem),
        host(host),
        team(team),
        engine(host),
        plan(make_plan<C, Tiles>(p, host, engine)),
        steps{p, 0},
        history(history),
        order{G, p.H, L} {
    row_size = plan.unit_vectors * G * L;
    const int64_t projection_vectors = Product::panels(order.vectors()) * Product::vectors;
    const int64_t recurrent_vectors = ceil_div(plan.unit_vectors, units) * units * G;
    weight_ih = scratch<Weight>(host, engine.packed_size(p.I, projection_vectors));
    weight_hh = scratch<Weight>(host, engine.packed_size(p.H, recurrent_vectors));
    bias_ih = scratch<S>(host, projection_vectors * L);
    bias_hh = scratch<S>(host, recurrent_vectors * L);
    projected = scratch<S>(host, plan.chunk * p.B * row_size);
    zeros = scratch<S>(host, p.H);
    room_size = engine.room_size(plan.chunk * p.B, p.I > p.H ? p.I : p.H);
    room = scratch<typename Engine::Room>(host, host.threads * room_size);
    rules = scratch<uint8_t>(host, 2 * host.threads * p.B);
    moments = scratch<Moment>(host, host.threads * plan.chunk);
    __builtin_memset(bias_ih, 0, size_t(projection_vectors * L) * sizeof(S));
    __builtin_memset(bias_hh, 0, size_t(recurrent_vectors * L) * sizeof(S));
    __builtin_memset(zeros, 0, size_t(p.H) * sizeof(S));
    __builtin_memset(rules, 0, size_t(2 * host.threads * p.B));
    if constexpr (Engine::splits)
      for (Rows& rows : hidden) {
        const int64_t size = engine.room_size(p.B, p.H);
        rows = engine.rows(scratch<Weight>(host, size), p.B, p.H);
        __builtin_memset(rows.data, 0, size_t(size) * sizeof(Weight));
      }
    pack_vector(p.bias_ih, order, bias_ih);
    pack_vector(p.bias_hh, order, bias_hh);
  }

  // The whole problem, by itself.
  static void run(const Forward<S>& problem, const Host& host) {
    Team team(host);
    History<S> history{problem, problem.B * ceil_div(problem.H, L) * C::saved * L};
    history.apart = problem.every;
    history.window_rows = 2;
    for (int i = 0; problem.every && i < C::states; ++i) history.window[i] = scratch<S>(host, 2 * problem.B * problem.H);
    ForwardLoop loop(problem, host, team, history);
    const auto work = [](void* self, int thread) {
      const FlushSubnormals flush;
      ForwardLoop& loop = *static_cast<ForwardLoop*>(self);
      typename Engine::Unit unit;
      loop.pack(thread);
      if (loop.team.wait(thread)) loop.advance(loop.mine(thread, unit), 0, loop.p.T);
    };
    host.run(host.context, work, &loop);
  }

  // The thread's part of the weights, before anything else. A barrier must follow.
  void pack(int thread) {
    const Range own = share(order.vectors(), host.threads, thread);
    engine.template pack_rows<Product::vectors>(p.weight_ih, p.I, order, own, weight_ih);
    engine.template pack_rows<units * G>(p.weight_hh, p.H, order, own, weight_hh);
  }

  Mine mine(int thread, typename Engine::Unit& unit) const {
    const Range b = plan.rows(p.B, thread);
    return {thread,
            unit,
            b,
            plan.units(thread),
            room + thread * room_size,
            rules + 2 * thread * p.B,
            rules + (2 * thread + 1) * p.B,
            projected + plan.chunk * b.begin * row_size};
  }

  // Steps `first` to `last` - 1; false when the call is to stop.
  bool advance(const Mine& mine, int64_t first, int64_t last) {
    if constexpr (Engine::splits) {
      split_states(mine, first);
      if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
    }
    for (int64_t begin = first; begin < last; begin += plan.chunk) {
      const int64_t end = begin + plan.chunk < last ? begin + plan.chunk : last;
      if (team.interrupted(mine.thread)) return false;
      project(mine, begin, end);
      for (int64_t s = begin; s < end; ++s) {
        find_rules(mine, s);
        step(mine, moment(s, mine.projected + (s - begin) * mine.count() * row_size));
        if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
      }
    }
    return true;
  }

  // What steps `begin` to `end` - 1, at most a chunk of them, saved: again, from states that are all kept. No step waits for
  // another, so their recurrent products are one.
  void save_again(const Mine& mine, int64_t begin, int64_t end) {
    project(mine, begin, end);
    Moment* at = moments + mine.thread * plan.chunk;
    const int64_t count = mine.count();
    const Rows rows = engine.rows(mine.room, (end - begin) * count, p.H);
    for (int64_t s = begin; s < end; ++s) {
      at[s - begin] = moment(s, mine.projected + (s - begin) * count * row_size);
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        rows.set((s - begin) * count + b - mine.b.begin, starts(s, b) ? zeros : at[s - begin].before[0] + b * p.H, p.H);
    }
    const Panels panels{mine.j.begin / units, ceil_div(mine.j.end, units)};
    const auto put = [&](int64_t first, int number, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + number; ++r, sums += units * G)
        for (int u = 0; u < units && q / G + u < mine.j.end; ++u) {
          const int64_t s = int(r) / int(count), b = mine.b.begin + int(r) % int(count), j = q / G + u;
          V old[C::states], next[C::states], a[C::saved + 1];
          evaluate(mine, at[s], b, j, starts(begin + s, b), sums + u * G, old, next, a);
          save(at[s], b, j, a);
        }
    };
    engine.template product<typename Tiles::Again>(p.H, rows, {0, (end - begin) * count}, weight_hh, panels, bias_hh,
                                                   sink<S>(put), mine.unit);
  }

 private:
  // Where one step finds its rows.
  struct Moment {
    int64_t s, t;
    const S* projected;          // (own sequences, row_size)
    const S* before[C::states];  // (B, H)
    S* after[C::states];
    S* saved;  // or null
  };

  Moment moment(int64_t s, const S* projection) const {
    Moment at{s, steps.time(s), projection, {}, {}, history.saved(steps, s)};
    for (int i = 0; i < C::states; ++i) at.before[i] = history.state(i, s), at.after[i] = history.after(i, s + 1);
    return at;
  }

  void project(const Mine& mine, int64_t begin, int64_t end) {
    const Rows rows = engine.rows(mine.room, (end - begin) * mine.count(), p.I);
    int64_t count = 0;
    for (int64_t s = begin; s < end; ++s)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        rows.set(count++, p.x.data + steps.time(s) * p.x.time + b * p.x.batch, p.I);
    const int64_t vectors = mine.j.end * G;
    const Panels panels{mine.j.begin * G / Product::vectors, Product::panels(vectors)};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += Product::vectors)
        for (int v = 0; v < Product::vectors && q + v < vectors; ++v) store(mine.projected + r * row_size + (q + v) * L, sums[v]);
    };
    engine.template product<Product>(p.I, rows, {0, count}, weight_ih, panels, bias_ih, sink<S>(put), mine.unit);
  }

  void find_rules(const Mine& mine, int64_t s) {
    if (!steps.ruled()) return;
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) {
      mine.rules[b] = uint8_t(steps.rule(s, b));
      mine.next_rules[b] = uint8_t(s + 1 < p.T ? steps.rule(s + 1, b) : 0);
    }
  }

  void step(const Mine& mine, const Moment& at) {
    Rows rows;
    if constexpr (Engine::splits) {
      rows = hidden[at.s % 2];
    } else {
      rows = engine.rows(mine.room, p.B, p.H);
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        rows.set(b, mine.rules[b] & fresh ? zeros : at.before[0] + b * p.H, p.H);
    }
    const Panels panels{mine.j.begin / units, ceil_div(mine.j.end, units), at.s % 2 != 0};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += units * G)
        for (int u = 0; u < units && q / G + u < mine.j.end; ++u) apply(mine, at, b, q / G + u, sums + u * G);
    };
    engine.template product<typename Tiles::Forward>(p.H, rows, mine.b, weight_hh, panels, bias_hh, sink<S>(put), mine.unit);
  }

  // The cell of one vector of units of one sequence; r is the recurrent part of its pre-activations.
  TT_INLINE void apply(const Mine& mine, const Moment& at, int64_t b, int64_t j, const V* r) {
    const int64_t n = p.H - j * L, unit = b * p.H + j * L;
    const bool still = mine.rules[b] & inactive;
    V old[C::states], next[C::states], a[C::saved + 1];
    evaluate(mine, at, b, j, mine.rules[b] & fresh, r, old, next, a);
    if (p.output.data) store_some(p.output.data + at.t * p.output.time + b * p.output.batch + j * L, still ? V{} : next[0], n);
    for (int i = 0; i < C::states; ++i) store_some(at.after[i] + unit, still ? old[i] : next[i], n);
    if constexpr (Engine::splits) put_split(at.s + 1, b, j, mine.next_rules[b], still ? old[0] : next[0]);
    if (at.saved) save(at, b, j, a);
  }

  TT_INLINE void evaluate(const Mine& mine, const Moment& at, int64_t b, int64_t j, bool starts, const V* r, V (&old)[C::states],
                          V (&next)[C::states], V (&a)[C::saved + 1]) {
    const S* projection = at.projected + (b - mine.b.begin) * row_size + j * G * L;
    V x[G];
    for (int i = 0; i < C::states; ++i) old[i] = starts ? V{} : load_some<V>(at.before[i] + b * p.H + j * L, p.H - j * L);
    for (int g = 0; g < G; ++g) x[g] = load<V>(projection + g * L);
    C::forward(x, r, old, next, a);
  }

  TT_INLINE void save(const Moment& at, int64_t b, int64_t j, const V (&a)[C::saved + 1]) {
    S* saved = at.saved + (b * plan.unit_vectors + j) * C::saved * L;
    for (int i = 0; i < C::saved; ++i) store(saved + i * L, a[i]);
  }

  // h as the left operand of step s. Lanes past H may be NaN, from an infinite input times their zero weights.
  TT_INLINE void put_split(int64_t s, int64_t b, int64_t j, int rule, V h) const {
    hidden[s % 2].put(b, j * L, rule & fresh ? V{} : keep_some<S>(h, p.H - j * L));
  }

  void split_states(const Mine& mine, int64_t s) const {
    const S* before = history.state(0, s);
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
      for (int64_t j = mine.j.begin; j < mine.j.end; ++j)
        put_split(s, b, j, starts(s, b) ? fresh : 0, load_some<V>(before + b * p.H + j * L, p.H - j * L));
  }

  bool starts(int64_t s, int64_t b) const { return steps.ruled() && steps.rule(s, b) & fresh; }

  const Forward<S>& p;
  const Host& host;
  Team& team;
  Engine engine;
  Plan plan;
  Steps<S> steps;
  History<S> history;
  Interleaved order;
  int64_t row_size, room_size;
  Weight *weight_ih, *weight_hh;  // packed
  S *bias_ih, *bias_hh;           // interleaved
  S *projected, *zeros;
  typename Engine::Room* room;
  uint8_t* rules;
  Moment* moments;
  Rows hidden[2];  // where left operands are copies: h before a step, and before the one after it
};

}  // namespace throughtime::TT_ISA
