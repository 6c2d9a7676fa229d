// The steps of the time loop, forward. The recurrent product leaves its sums in registers, and the cell reads them there; a
// cell of two phases then runs the second product or its whole rows. The step knows no equation; the cell knows no memory.
#pragma once

#include "../../step/forward.hpp"
#include "history.hpp"
#include "operand.hpp"
#include "unit_parameters.hpp"
#include "whole_row.hpp"

namespace throughtime::TT_ISA {

// The fraction of old state i that vector j of units keeps.
template <class S>
TT_INLINE Vec<S> zoneout_fraction(const Zoneout<S>& zoneout, int i, int64_t t, int64_t b, int64_t j) {
  const auto load = [](const uint8_t* from, int64_t count) __attribute__((always_inline)) { return load_bytes<S>(from, count); };
  return zoneout.template fraction<Vec<S>>(i, t, b, j * lanes<S>, load);
}

// A bias in tile order, padded to `vectors` vectors; zeros if the cell takes it as per-unit parameters.
template <class C, class S>
S* packed_bias(const S* from, Interleaved order, int64_t vectors, const Host& host) {
  S* packed = scratch<S>(host, vectors * lanes<S>);
  __builtin_memset(packed, 0, size_t(vectors * lanes<S>) * sizeof(S));
  pack_vector(C::bias_inside ? nullptr : from, order, packed);
  return packed;
}

template <class C, class S, class Tiles>
class RecurrentForward {
  using V = Vec<S>;
  using Engine = typename Tiles::Engine;
  using Rows = typename Engine::Rows;
  using Weight = typename Engine::Weight;
  using Second = typename Tiles::template With<1>;
  static constexpr int W = lanes<S>, G = C::gates, R = C::recurrent, units = Tiles::units;
  static constexpr bool two_products = C::phases == Phases::two_products;

 public:
  using Unit = Units<Engine, typename Tiles::ChunkEngine>;

  // The arrays of one step.
  struct StepView {
    int64_t s, t;
    const S* projected;          // from the first vector of units on: (own sequences, gates, lanes)
    const S* before[C::states];  // (B, H)
    S* after[C::states];
    S* saved;  // or null
  };

  // One part of the work, with its buffers.
  struct ThreadView {
    int part;
    Range b, j, q;                           // sequences, vectors of units and of features of h
    typename Engine::RowBuffer* row_buffer;  // for every row of the chunk
    uint8_t *flags, *next_flags;             // of this step and the next, per sequence
    S* projected;                            // (units, chunk steps, own sequences, gates, lanes)
    StepView* chunk;                         // the steps of a chunk being recomputed
    Unit* unit = nullptr;                    // of the thread that runs this part
    int64_t count() const { return b.end - b.begin; }
  };

  RecurrentForward(const Forward<S>& problem, const Host& host, const Engine& of_host, const Plan& of_problem,
                   const History<S>& of_loop)
      : p(problem),
        engine(of_host),
        plan(of_problem),
        steps{p, 0},
        history(of_loop),
        zoneout{p},
        order{R, p.H, W},
        second_order{1, p.P, W} {
    const int64_t vectors = ceil_div(plan.unit_vectors, units) * units * R;
    packed = scratch<Weight>(host, engine.packed_size(p.P, vectors));
    bias = packed_bias<C>(p.weights[bias_hh], order, vectors, host);
    zeros = scratch<S>(host, p.P);
    __builtin_memset(zeros, 0, size_t(p.P) * sizeof(S));
    if constexpr (Engine::copies_operands)
      for (Rows& rows : hidden) {
        const int64_t size = engine.row_buffer_size(p.B, p.P);
        rows = engine.rows(scratch<Weight>(host, size), p.B, p.P);
        __builtin_memset(rows.data, 0, size_t(size) * sizeof(Weight));
      }
    if constexpr (C::phases != Phases::one) prepare_second(host);
    if constexpr (unit_parameter_count<C>() > 0) unit_packed = pack_unit_parameters<C>(p, host);
  }

  // Packs one part of the weights, before anything else runs.
  void pack(int parts, int part, Poll& poll) {
    in_pieces(share(order.vectors(), parts, part), p.P * W, poll,
              [&](Range own) { engine.template pack_rows<units * R>(p.weights[weight_hh], p.P, order, own, packed); });
    if constexpr (two_products)
      in_pieces(share(second_order.vectors(), parts, part), p.H * W, poll, [&](Range own) {
        engine.template pack_rows<Second::units>(second_part<C>(p.weights, p, weight_hh), p.H, second_order, own, second_packed);
      });
  }

  // Copies h before step s into the left operand, if operands are copies.
  TT_PHASE void split_states(const ThreadView& view, int64_t s) const {
    const S* before = history.state(0, s);
    for (int64_t b = view.b.begin; b < view.b.end; ++b)
      for (int64_t j = view.q.begin; j < view.q.end; ++j)
        put_split(s, b, j, starts(s, b) ? int(reset) : 0, load_some<V>(before + b * p.P + j * W, p.P - j * W));
  }

  TT_PHASE StepView step_view(const ThreadView& view, int64_t s, int64_t begin) const {
    StepView step{s, steps.time(s), view.projected + (s - begin) * view.count() * G * W, {}, {}, history.saved(steps, s)};
    if (C::phases != Phases::one && !step.saved) step.saved = spare;
    for (int i = 0; i < C::states; ++i) step.before[i] = history.state(i, s), step.after[i] = history.after(i, s + 1);
    return step;
  }

  // The recurrent product and the cell. A product of two halves calls ready() between them; false: the call must stop.
  TT_PHASE void take_step(const ThreadView& view, const StepView& step, const Ready& ready) {
    find_flags(view, step.s);
    Rows rows;
    if constexpr (Engine::copies_operands) {
      rows = hidden[step.s % 2];
    } else {
      rows = engine.rows(view.row_buffer, p.B, p.P);
      for (int64_t b = view.b.begin; b < view.b.end; ++b)
        rows.set(b, view.flags[b] & reset ? zeros : step.before[0] + b * p.P, p.P);
    }
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += units * R)
        for (int u = 0; u < units && q / R + u < view.j.end; ++u) cell_step(view, step, b, q / R + u).run(sums + u * R);
    };
    const Panels panels = panels_of<units>(view.j, step.s);
    if constexpr (Tiles::halves)
      engine.template product_of_halves<typename Tiles::Forward>(p.P, rows, view.b, packed, panels, bias, sink<S>(put),
                                                                 {view.q.begin * W, view.q.end * W}, ready, view.unit->steps());
    else
      engine.template product<typename Tiles::Forward>(p.P, rows, view.b, packed, panels, bias, sink<S>(put), view.unit->steps());
  }

  TT_PHASE void second_product(const ThreadView& view, const StepView& step) {
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += Second::units)
        for (int u = 0; u < Second::units && q + u < view.q.end; ++u) cell_step(view, step, b, q + u).run_second(sums + u);
    };
    engine.template product<typename Second::Forward>(p.H, middle.rows(0, view.b, view.row_buffer), view.b, second_packed,
                                                      panels_of<Second::units>(view.q, step.s), second_bias, sink<S>(put),
                                                      view.unit->steps());
  }

  TT_PHASE void apply_rows(const ThreadView& view, const StepView& step) {
    const Range own = plan.whole_rows(p.B, view.part);
    for (int64_t b = own.begin; b < own.end; ++b) {
      const S* c = view.flags[b] & reset ? nullptr : step.before[C::states - 1] + b * p.H;
      Row row{
          {p.H, saved_at(step, b, 0), c, unit_packed, row_scratch + view.part * Row::scratch_size(p.H)}, *this, view, step, b};
      C::forward_row(row);
    }
  }

  // Recomputes the cells of a chunk, from states that are all stored.
  TT_PHASE void recompute_first(const ThreadView& view, int64_t begin, int64_t end) {
    const Range all{0, (end - begin) * view.count()};
    const Rows rows = engine.rows(view.row_buffer, all.end, p.P);
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
    engine.template product<typename Tiles::Recompute>(p.P, rows, all, packed, panels_of<units>(view.j, 0), bias, sink<S>(put),
                                                       view.unit->steps());
  }

  // Recomputes their second products.
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
    engine.template product<typename Second::Recompute>(p.H, middle.rows(own, all, view.row_buffer), all, second_packed,
                                                        panels_of<Second::units>(view.q, 0), second_bias, sink<S>(finish),
                                                        view.unit->steps());
  }

  // Whether saved values bypass the cache: large ones would be evicted before the backward reads them.
  bool streams_saved() const { return streams; }

  // As in saved_offset, rows of the same units are adjacent.
  template <class P>
  TT_INLINE P* projected_at(const ThreadView& view, P* first, int64_t j, int64_t row) const {
    return first + (j * plan.chunk * view.count() + row) * G * W;
  }

 private:
  void prepare_second(const Host& host) {
    if (!history.keeps()) spare = scratch<S>(host, history.saved_size);
    if constexpr (two_products) {
      const int64_t vectors = ceil_div(plan.hidden_vectors, Second::units) * Second::units;
      second_packed = scratch<Weight>(host, engine.packed_size(p.H, vectors));
      second_bias = packed_bias<C>(second_part<C>(p.weights, p, bias_hh), second_order, vectors, host);
      middle = Operand<S, Engine>(engine, host, (history.saved_window ? plan.chunk : 1) * p.B, plan.unit_vectors * W, false);
    } else {
      row_scratch = scratch<S>(host, host.threads * Row::scratch_size(p.H));
    }
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

  S* saved_at(const StepView& step, int64_t b, int64_t j) const {
    return step.saved + saved_offset<C>(b, j, p.B, plan.unit_vectors) * C::saved * W;
  }

  // Vector j of units, or of features of h, of one sequence at one step; see step/forward.hpp.
  struct At {
    using V = Vec<S>;
    static constexpr bool keeps_first_phase = true;

    const RecurrentForward& loop;
    const ThreadView& view;
    const StepView& step;
    int64_t b, j;
    int flags;
    int64_t middle_row;  // row of the second product's operand

    static TT_INLINE int64_t width(const Recurrence<S>& p, int i) { return i == 0 && C::projects ? p.P : p.H; }

    TT_INLINE V old_state(int i) const {
      const int64_t width = At::width(loop.p, i);
      return load_some<V>(step.before[i] + b * width + j * W, width - j * W);
    }
    TT_INLINE void load_inputs(V* x) const {
      const S* projection = loop.projected_at(view, step.projected, j, b - view.b.begin);
      for (int g = 0; g < G; ++g) x[g] = load<V>(projection + g * W);
    }
    TT_INLINE void load_unit_parameters(V* w) const { load_units<unit_parameter_count<C>()>(loop.unit_packed, j, w); }
    TT_INLINE bool zoned(int i) const { return loop.zoned[i]; }
    TT_INLINE V fraction(int i) const { return zoneout_fraction(loop.zoneout, i, step.t, b, j); }
    TT_INLINE void load_saved(V* a) const {
      for (int i = 0; i < C::saved; ++i) a[i] = load<V>(loop.saved_at(step, b, j) + i * W);
    }
    TT_INLINE void save(const V* a) const {
      if (!step.saved) return;
      S* saved = loop.saved_at(step, b, j);
      for (int i = 0; i < C::saved; ++i) loop.streams ? stream(saved + i * W, a[i]) : store(saved + i * W, a[i]);
    }
    TT_INLINE void set_middle(V m) const { loop.middle.put(middle_row, j * W, keep_some<S>(m, loop.p.H - j * W)); }
    TT_INLINE void set_output(V y) const {
      const View<S>& output = loop.p.output;
      if (output.data) store_some(output.data + step.t * output.time + b * output.batch + j * W, y, width(loop.p, 0) - j * W);
    }
    TT_INLINE void set_state(int i, V after) const {
      const int64_t width = At::width(loop.p, i);
      store_some(step.after[i] + b * width + j * W, after, width - j * W);
      if constexpr (Engine::copies_operands)
        if (i == 0) loop.put_split(step.s + 1, b, j, view.next_flags[b], after);
    }
  };

  TT_INLINE ForwardStep<C, At> cell_step(const ThreadView& view, const StepView& step, int64_t b, int64_t j) const {
    return {{*this, view, step, b, j, view.flags[b], b}};
  }

  // The step of row r of a chunk being recomputed.
  TT_INLINE ForwardStep<C, At> recomputed_step(const ThreadView& view, int64_t r, int64_t j) const {
    const int count = int(view.count());
    const StepView& step = view.chunk[int(r) / count];
    const int64_t b = view.b.begin + int(r) % count;
    return {{*this, view, step, b, j, starts(step.s, b) ? int(reset) : 0, plan.chunk * view.b.begin + r}};
  }

  // A row that stores its states through the step.
  struct Row : WholeRow<C, S> {
    const RecurrentForward& loop;
    const ThreadView& view;
    const StepView& step;
    int64_t b;

    int variant() const { return loop.p.variant; }
    template <int i>
    TT_INLINE void set_next(int64_t j, V next) const {
      const auto cell = loop.cell_step(view, step, b, j);
      cell.store_state(i, cell.old_state(i), next);
    }
  };

  // Puts h into the left operand of step s. Lanes past H may be NaN: infinite inputs times zero weights.
  TT_INLINE void put_split(int64_t s, int64_t b, int64_t j, int flags, V h) const {
    hidden[s % 2].put(b, j * W, state_before(flags, keep_some<S>(h, p.P - j * W)));
  }

  bool starts(int64_t s, int64_t b) const { return steps.ruled() && steps.flags(s, b) & reset; }

  const Forward<S>& p;
  Engine engine;
  const Plan plan;
  const Steps<S> steps;
  const History<S> history;
  const Zoneout<S> zoneout;
  const bool zoned[max_states] = {zoneout.any(0), zoneout.any(1)};
  const bool streams = Engine::overlaps && C::phases == Phases::one && p.saved && streamable(p.saved, p.T* history.saved_size);
  Interleaved order, second_order;
  Weight *packed, *second_packed;
  S *bias, *second_bias;      // interleaved
  const S* unit_packed;       // (units, values, lanes)
  S* zeros;                   // the state before an episode
  Rows hidden[2];             // if operands are copies: h before this step and the next
  Operand<S, Engine> middle;  // of the second product
  S* spare = nullptr;         // if nothing is saved: one step's values, for the second phase
  S* row_scratch;             // one row per thread
};

}  // namespace throughtime::TT_ISA
