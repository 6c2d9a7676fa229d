// The time loop, forward: per chunk of steps one product for the chunk's x W^T + b, then step by step the recurrent product into
// registers and the cell on those same registers. Knows no equation; the cell knows no memory.
#pragma once

#include "history.hpp"
#include "plan.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class ForwardLoop {
  using V = Vec<S>;
  static constexpr int L = lanes<S>, G = C::gates, units = Tiles::units;

 public:
  static void* operator new(size_t, void* place) { return place; }

  // What one thread works on.
  struct Mine {
    int thread;
    Range b, j;      // sequences, vectors of units
    const S** rows;  // room for a row of the chunk each
    uint8_t* rules;  // of the step, one a sequence
    S* projected;    // (chunk steps, own sequences, row_size)
    int64_t count() const { return b.end - b.begin; }
  };

  ForwardLoop(const Forward<S>& problem, const Host& host, Team& team, const History<S>& history)
      : p(problem), host(host), team(team), plan(make_plan<C>(p, host)), steps{p, 0}, history(history), order{G, p.H, L} {
    row_size = plan.unit_vectors * G * L;
    const int64_t projection_vectors = product_panels(order.vectors()) * product_vectors;
    const int64_t recurrent_vectors = ceil_div(plan.unit_vectors, units) * units * G;
    weight_ih = scratch<S>(host, projection_vectors * L * p.I);
    weight_hh = scratch<S>(host, recurrent_vectors * L * p.H);
    bias_ih = scratch<S>(host, projection_vectors * L);
    bias_hh = scratch<S>(host, recurrent_vectors * L);
    projected = scratch<S>(host, plan.chunk * p.B * row_size);
    zeros = scratch<S>(host, p.H);
    rows = scratch<const S*>(host, host.threads * plan.chunk * p.B);
    rules = scratch<uint8_t>(host, host.threads * p.B);
    moments = scratch<Moment>(host, host.threads * plan.chunk);
    __builtin_memset(bias_ih, 0, size_t(projection_vectors * L) * sizeof(S));
    __builtin_memset(bias_hh, 0, size_t(recurrent_vectors * L) * sizeof(S));
    __builtin_memset(zeros, 0, size_t(p.H) * sizeof(S));
    __builtin_memset(rules, 0, size_t(host.threads * p.B));
    pack_vector(p.bias_ih, order, bias_ih);
    pack_vector(p.bias_hh, order, bias_hh);
  }

  // The whole problem, by itself.
  static void run(const Forward<S>& problem, const Host& host) {
    Team team(host);
    History<S> history{problem, problem.B * ceil_div(problem.H, L) * C::saved * L};
    history.window_rows = 2;
    for (int i = 0; problem.every && i < C::states; ++i) history.window[i] = scratch<S>(host, 2 * problem.B * problem.H);
    ForwardLoop loop(problem, host, team, history);
    const auto work = [](void* self, int thread) {
      const FlushSubnormals flush;
      ForwardLoop& loop = *static_cast<ForwardLoop*>(self);
      loop.pack(thread);
      if (loop.team.wait()) loop.advance(loop.mine(thread), 0, loop.p.T);
    };
    host.run(host.context, work, &loop);
  }

  // The thread's part of the weights, before anything else. A barrier must follow.
  void pack(int thread) {
    pack_rows<product_vectors>(p.weight_ih, p.I, order, share(order.vectors(), host.threads, thread), weight_ih);
    pack_rows<units * G>(p.weight_hh, p.H, order, share(order.vectors(), host.threads, thread), weight_hh);
  }

  Mine mine(int thread) const {
    Mine mine{thread, plan.rows(p.B, thread), plan.units(thread), rows + thread * plan.chunk * p.B, rules + thread * p.B,
              nullptr};
    mine.projected = projected + plan.chunk * mine.b.begin * row_size;
    return mine;
  }

  // Steps `first` to `last` - 1; false when the call is to stop.
  bool advance(const Mine& mine, int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += plan.chunk) {
      const int64_t end = begin + plan.chunk < last ? begin + plan.chunk : last;
      if (team.interrupted(mine.thread)) return false;
      project(mine, begin, end);
      for (int64_t s = begin; s < end; ++s) {
        find_rules(mine, s);
        step(mine, moment(s, mine.projected + (s - begin) * mine.count() * row_size));
        if (plan.unit_parts > 1 && !team.wait()) return false;
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
    for (int64_t s = begin; s < end; ++s) {
      at[s - begin] = moment(s, mine.projected + (s - begin) * count * row_size);
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        mine.rows[(s - begin) * count + b - mine.b.begin] = starts(s, b) ? zeros : at[s - begin].before[0] + b * p.H;
    }
    const Range panels{mine.j.begin / units, ceil_div(mine.j.end, units)};
    const auto put = [&](int64_t first, int rows, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + rows; ++r, sums += units * G)
        for (int u = 0; u < units && q / G + u < mine.j.end; ++u) {
          const int64_t s = int(r) / int(count), b = mine.b.begin + int(r) % int(count), j = q / G + u;
          V old[C::states], next[C::states], a[C::saved + 1];
          evaluate(mine, at[s], b, j, starts(begin + s, b), sums + u * G, old, next, a);
          save(at[s], b, j, a);
        }
    };
    product<typename Tiles::Again>(p.H, mine.rows, {0, (end - begin) * count}, weight_hh, panels, bias_hh, sink<S>(put));
  }

 private:
  // Where one step finds its rows.
  struct Moment {
    int64_t t;
    const S* projected;          // (own sequences, row_size)
    const S* before[C::states];  // (B, H)
    S* after[C::states];
    S* saved;  // or null
  };

  Moment moment(int64_t s, const S* projection) const {
    Moment at{steps.time(s), projection, {}, {}, history.saved(steps, s)};
    for (int i = 0; i < C::states; ++i) at.before[i] = history.state(i, s), at.after[i] = history.state(i, s + 1);
    return at;
  }

  void project(const Mine& mine, int64_t begin, int64_t end) {
    const S** row = mine.rows;
    for (int64_t s = begin; s < end; ++s)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b) *row++ = p.x.data + steps.time(s) * p.x.time + b * p.x.batch;
    const int64_t vectors = mine.j.end * G;
    const Range panels{mine.j.begin * G / product_vectors, product_panels(vectors)};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += product_vectors)
        for (int v = 0; v < product_vectors && q + v < vectors; ++v) store(mine.projected + r * row_size + (q + v) * L, sums[v]);
    };
    product<ProductShape>(p.I, mine.rows, {0, row - mine.rows}, weight_ih, panels, bias_ih, sink<S>(put));
  }

  void find_rules(const Mine& mine, int64_t s) {
    if (!steps.ruled()) return;
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) mine.rules[b] = uint8_t(steps.rule(s, b));
  }

  void step(const Mine& mine, const Moment& at) {
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) mine.rows[b] = mine.rules[b] & fresh ? zeros : at.before[0] + b * p.H;
    const Range panels{mine.j.begin / units, ceil_div(mine.j.end, units)};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += units * G)
        for (int u = 0; u < units && q / G + u < mine.j.end; ++u) apply(mine, at, b, q / G + u, sums + u * G);
    };
    product<typename Tiles::Forward>(p.H, mine.rows, mine.b, weight_hh, panels, bias_hh, sink<S>(put));
  }

  // The cell of one vector of units of one sequence; r is the recurrent part of its pre-activations.
  TT_INLINE void apply(const Mine& mine, const Moment& at, int64_t b, int64_t j, const V* r) {
    const int64_t n = p.H - j * L, unit = b * p.H + j * L;
    const bool still = mine.rules[b] & inactive;
    V old[C::states], next[C::states], a[C::saved + 1];
    evaluate(mine, at, b, j, mine.rules[b] & fresh, r, old, next, a);
    if (p.output.data) store_some(p.output.data + at.t * p.output.time + b * p.output.batch + j * L, still ? V{} : next[0], n);
    for (int i = 0; i < C::states; ++i) store_some(at.after[i] + unit, still ? old[i] : next[i], n);
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

  bool starts(int64_t s, int64_t b) const { return steps.ruled() && steps.rule(s, b) & fresh; }

  const Forward<S>& p;
  const Host& host;
  Team& team;
  Plan plan;
  Steps<S> steps;
  History<S> history;
  Interleaved order;
  int64_t row_size;
  S *weight_ih, *weight_hh;  // packed
  S *bias_ih, *bias_hh;      // interleaved
  S *projected, *zeros;
  const S** rows;
  uint8_t* rules;
  Moment* moments;
};

}  // namespace throughtime::TT_ISA
