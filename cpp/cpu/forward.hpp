// The time loop, forward: per chunk of steps one product for the chunk's x W^T + b, then step by step the recurrent product into
// registers and the cell on those same registers. Knows no equation; the cell knows no memory.
#pragma once

#include "plan.hpp"
#include "steps.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class ForwardLoop {
  using V = Vec<S>;
  static constexpr int L = lanes<S>, G = C::gates, units = Tiles::units;

 public:
  ForwardLoop(const Forward<S>& problem, const Host& host)
      : p(problem), host(host), team(host), plan(make_plan<C>(p, host)), steps{p, 0}, order{G, p.H, L} {
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
    __builtin_memset(bias_ih, 0, size_t(projection_vectors * L) * sizeof(S));
    __builtin_memset(bias_hh, 0, size_t(recurrent_vectors * L) * sizeof(S));
    __builtin_memset(zeros, 0, size_t(p.H) * sizeof(S));
    __builtin_memset(rules, 0, size_t(host.threads * p.B));
    pack_vector(p.bias_ih, order, bias_ih);
    pack_vector(p.bias_hh, order, bias_hh);
  }

  void run() {
    host.run(host.context, [](void* self, int thread) { static_cast<ForwardLoop*>(self)->work(thread); }, this);
  }

 private:
  // What one thread works on.
  struct Mine {
    int thread;
    Range b, j;      // sequences, vectors of units
    const S** rows;  // room for a row of the chunk each
    uint8_t* rules;  // of the step, one a sequence
    S* projected;    // (chunk steps, own sequences, row_size)
    int64_t count() const { return b.end - b.begin; }
  };

  // Where one step finds its rows.
  struct Moment {
    int64_t t;
    const S* projected;          // (own sequences, row_size)
    const S* before[C::states];  // (B, H)
    S* after[C::states];
  };

  Moment moment(int64_t s, const S* projection) const {
    Moment at{steps.time(s), projection, {}, {}};
    for (int i = 0; i < C::states; ++i) {
      at.before[i] = p.states[i] + steps.row_before(s) * p.B * p.H;
      at.after[i] = p.states[i] + steps.row_after(s) * p.B * p.H;
    }
    return at;
  }

  void work(int thread) {
    const FlushSubnormals flush;
    pack_rows<product_vectors>(p.weight_ih, p.I, order, share(order.vectors(), host.threads, thread), weight_ih);
    pack_rows<units * G>(p.weight_hh, p.H, order, share(order.vectors(), host.threads, thread), weight_hh);
    if (!team.wait()) return;
    Mine mine{thread, plan.rows(p.B, thread), plan.units(thread), rows + thread * plan.chunk * p.B, rules + thread * p.B,
              nullptr};
    mine.projected = projected + plan.chunk * mine.b.begin * row_size;
    for (int64_t begin = 0; begin < p.T; begin += plan.chunk) {
      const int64_t end = begin + plan.chunk < p.T ? begin + plan.chunk : p.T;
      if (team.interrupted(thread)) return;
      project(mine, begin, end);
      for (int64_t s = begin; s < end; ++s) {
        find_rules(mine, s);
        step(mine, moment(s, mine.projected + (s - begin) * mine.count() * row_size));
        if (plan.unit_parts > 1 && !team.wait()) return;
      }
    }
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
    const bool still = mine.rules[b] & inactive, starts = mine.rules[b] & fresh;
    const S* projection = at.projected + (b - mine.b.begin) * row_size + j * G * L;
    V x[G], old[C::states], next[C::states], a[C::saved + 1];
    for (int i = 0; i < C::states; ++i) old[i] = starts ? V{} : load_some<V>(at.before[i] + unit, n);
    for (int g = 0; g < G; ++g) x[g] = load<V>(projection + g * L);
    C::forward(x, r, old, next, a);
    if (p.output.data) store_some(p.output.data + at.t * p.output.time + b * p.output.batch + j * L, still ? V{} : next[0], n);
    for (int i = 0; i < C::states; ++i) store_some(at.after[i] + unit, still ? old[i] : next[i], n);
    if (!p.saved) return;
    S* saved = p.saved + ((at.t * p.B + b) * plan.unit_vectors + j) * C::saved * L;
    for (int i = 0; i < C::saved; ++i) store(saved + i * L, a[i]);
  }

  const Forward<S>& p;
  const Host& host;
  Team team;
  Plan plan;
  Steps<S> steps;
  Interleaved order;
  int64_t row_size;
  S *weight_ih, *weight_hh;  // packed
  S *bias_ih, *bias_hh;      // interleaved
  S *projected, *zeros;
  const S** rows;
  uint8_t* rules;
};

}  // namespace throughtime::TT_ISA
