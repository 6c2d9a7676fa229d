// The steps of the time loop, backward: the recurrent product of the later step, then the cell's derivative on its sums. The
// step knows no equation; the cell knows no memory.
#pragma once

#include "../../step/backward.hpp"
#include "clip.hpp"
#include "forward_step.hpp"
#include "recurrent_gradient.hpp"
#include "scaled_gradient.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class RecurrentBackward {
  using V = Vec<S>;
  using Engine = typename Tiles::Engine;
  using Rows = typename Engine::Rows;
  using ThreadView = BackwardThreadView<C, S, Tiles>;
  using StepView = BackwardStepView<C, S>;
  static constexpr int W = lanes<S>, G = C::gates, R = C::recurrent, back = Tiles::Backward::vectors;
  static constexpr int values = unit_parameter_count<C>();
  static constexpr bool two_products = C::phases == Phases::two_products, whole_rows = C::phases == Phases::rows;
  static constexpr const S* none = nullptr;  // no bias

 public:
  Deltas<C, S, Tiles> deltas;

  RecurrentBackward(const Backward<S>& problem, const Host& host, const Engine& of_host,
                    const typename Tiles::ChunkEngine& chunk_engine, const Plan& of_problem, const History<S>& of_loop)
      : deltas(problem, host, chunk_engine, of_problem.chunk),
        p(problem),
        threads(host.threads),
        engine(of_host),
        plan(of_problem),
        steps{p, p.truncate},
        history(of_loop),
        zoneout{p},
        gradient(p, host, engine, plan, deltas, rescales) {
    for (int i = 0; i < C::states; ++i) carry[i] = scratch<S>(host, p.B * vectors(i) * W);
    if (p.clip > 0) carried_norms.prepare(host, p.B, plan.hidden_vectors, plan.unit_vectors);
    for (int i = 0; i < C::states; ++i) {
      const int64_t width = history.width(i);
      d_states[i] = p.d_states[i];
      streams[i] = Engine::overlaps && d_states[i] && width % W == 0 && streamable(d_states[i], p.T * p.B * width);
    }
    if (asks_flow) flow.prepare(p, host), d_states[0] = scratch<S>(host, plan.chunk * p.B * p.P), streams[0] = false;
    if constexpr (two_products) {
      const int64_t vectors = Tiles::Backward::panels(plan.unit_vectors) * back;
      second_packed = scratch<typename Engine::Weight>(host, engine.packed_size(deltas.second.row_size(), vectors));
    }
    if constexpr (whole_rows) row_scratch = scratch<S>(host, host.threads * Row::scratch_size(p.H));
    if constexpr (values > 0) unit_packed = pack_unit_parameters<C>(p, host);
  }

  // Packs one part of the weights, before anything else runs.
  void pack(int parts, int part, Poll& poll) const {
    gradient.pack(parts, part, poll);
    if constexpr (two_products) {
      const Range panels = share(Tiles::Backward::panels(plan.unit_vectors), parts, part);
      in_pieces(panels, deltas.second.row_size() * back * W, poll, [&](Range own) {
        engine.template pack_columns<back>(second_part<C>(p.weights, p, weight_hh), p.H, deltas.second.order, own, second_packed);
      });
    }
  }

  // Loads the final state's gradient as the gradient carried into the last step.
  void start(const ThreadView& view) const {
    for (int64_t b = view.b.begin; b < view.b.end; ++b) view.scales[b] = 1;
    for (int i = 0; i < C::states; ++i)
      for (int64_t b = view.b.begin; b < view.b.end; ++b) {
        const Range own = i == 0 ? view.q : view.j;
        const int64_t width = history.width(i);
        for (int64_t j = own.begin; j < own.end; ++j)
          store(units(i, b, j), p.d_final[i] ? load_some<V>(p.d_final[i] + b * width + j * W, width - j * W) : V{});
      }
  }

  TT_PHASE StepView step_view(int64_t s, int64_t begin) const {
    const int64_t t = steps.time(s), row = (s - begin) * p.B, next = s > 0 ? s - 1 : s;
    StepView step{s, t, {}, {}, history.saved(steps, s), deltas.row(s), row, asks_flow ? row : t * p.B, {}, {}, {}};
    step.next_saved = history.saved(steps, next), step.next_cell = history.state(C::states - 1, next);
    if (p.d_output.data) step.next_loss = p.d_output.data + steps.time(next) * p.d_output.time;
    for (int i = 0; i < C::states; ++i) step.before[i] = history.state(i, s), step.after[i] = history.state(i, s + 1);
    return step;
  }

  // The recurrent product of the later step, and the cell's first phase.
  TT_PHASE void take_step(const ThreadView& view, const StepView& step, const Ready& ready) {
    if (steps.ruled()) find_flags(view, step.s);
    recurrent_gradient(view, step, ready, [&](int64_t b, int64_t q, V dh) {
      if constexpr (C::phases == Phases::one) cell_step(view, step, b, q, p.H).run(dh);
      else if constexpr (two_products) cell_step(view, step, b, q, p.P).second_product_delta(dh);
      else store(units(0, b, q), dh);
    });
  }

  // Runs first if the carried gradient is rescaled: computes it and records its size, because its norm needs all parts.
  TT_PHASE void observe(const ThreadView& view, const StepView& step) {
    if (steps.ruled()) find_flags(view, step.s);
    if (asks_flow) flow.clear(view.part, view.b);
    gradient.compute(view, step.s + 1, {}, [&](int64_t b, int64_t q, V h) {
      store(units(0, b, q), load<V>(units(0, b, q)) + h);
      observe(view, 0, b, q);
    });
    for (int i = 1; i < C::states; ++i)
      for (int64_t b = view.b.begin; b < view.b.end; ++b)
        for (int64_t j = view.j.begin; j < view.j.end; ++j) observe(view, i, b, j);
  }

  TT_PHASE void second_product(const ThreadView& view, const StepView& step) {
    const auto put = [&](int64_t first, int count, int64_t j, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && j + v < view.j.end; ++v) cell_step(view, step, b, j + v, p.H).run_first(sums[v]);
    };
    const Rows rows = deltas.step_rows(deltas.second, step.s, view);
    engine.template product<typename Tiles::Backward>(deltas.second.row_size(), rows, view.b, second_packed,
                                                      gradient.panels_of(view.j, step.s), none, sink<S>(put), view.unit->steps());
  }

  TT_PHASE void apply_rows(const ThreadView& view, const StepView& step) {
    const Range own_rows = plan.whole_rows(p.B, view.part);
    for (int64_t b = own_rows.begin; b < own_rows.end; ++b) {
      const S* c = view.flags[b] & reset ? nullptr : step.before[C::states - 1] + b * p.H;
      Row row{
          {p.H, saved_at(step, b, 0), c, unit_packed, row_scratch + view.part * Row::scratch_size(p.H)}, *this, view, step, b};
      if (view.flags[b] & inactive) {
        for (int64_t j = 0; j < plan.unit_vectors; ++j) row.at(j).skip(row.at(j).at.carried(0));
      } else {
        C::backward_row(row);
      }
    }
  }

  TT_PHASE void flow_norms(const ThreadView& view, int64_t begin, int64_t end) const {
    const Range own = share(end - begin, threads, view.part);
    for (int64_t i = own.begin; i < own.end; ++i) flow.find_norms(view.part, steps.time(begin + i), d_states[0] + i * p.B * p.P);
  }

  // The recurrent product carries the first step's delta to the initial state.
  TT_PHASE void initial_gradient(const ThreadView& view) {
    if (steps.ruled()) find_flags(view, -1);
    gradient.compute(view, 0, {}, [&](int64_t b, int64_t q, V h) {
      store_some(p.d_initial[0] + b * p.P + q * W, load<V>(units(0, b, q)) + h, p.P - q * W);
    });
    for (int i = 1; i < C::states; ++i)
      for (int64_t b = view.b.begin; b < view.b.end; ++b)
        for (int64_t j = view.j.begin; j < view.j.end; ++j)
          store_some(p.d_initial[i] + b * p.H + j * W, load<V>(units(i, b, j)), p.H - j * W);
  }

  RecurrentGradient<C, S, Tiles>& recurrent_product() { return gradient; }
  bool rescales_carried() const { return rescales; }

 private:
  // Calls put(b, q, dh) with the gradient that h receives from the later step (for the flow, loss included).
  template <class Put>
  void recurrent_gradient(const ThreadView& view, const StepView& step, const Ready& ready, const Put& put) {
    if (!rescales) {
      gradient.compute(view, step.s + 1, ready, [&](int64_t b, int64_t q, V h) { put(b, q, load<V>(units(0, b, q)) + h); });
      return;
    }
    for (int64_t b = view.b.begin; b < view.b.end; ++b) asks_flow ? find_exponent(view, step, b) : find_scale(view, step, b);
    for (int64_t b = view.b.begin; b < view.b.end; ++b)
      for (int64_t q = view.q.begin; q < view.q.end; ++q) {
        const V scaled = load<V>(units(0, b, q)) * view.scales[b];
        put(b, q, asks_flow ? scaled + flow.loss(view.part, step.t, b, q) : scaled);
      }
  }

  TT_INLINE void observe(const ThreadView& view, int i, int64_t b, int64_t j) const {
    if (asks_flow) flow.observe(view.part, b, load<V>(units(i, b, j)));
    else carried_norms.observe(i, b, j, units(i, b, j));
  }

  void find_flags(const ThreadView& view, int64_t s) {
    for (int64_t b = view.b.begin; b < view.b.end; ++b) {
      view.flags[b] = uint8_t(s >= 0 ? steps.flags(s, b) : 0);
      view.later_flags[b] = uint8_t(s + 1 < p.T ? steps.flags(s + 1, b) : 0);
    }
  }

  void find_scale(const ThreadView& view, const StepView& step, int64_t b) const {
    const double norm = carried_norms.norm(b);
    const bool clipped = clips(p, steps, step.s, b, view.flags[b], norm);
    view.scales[b] = clipped ? S(p.clip / norm) : S(1);
    if (view.j.begin == 0 && view.j.end > 0) p.clipped[step.t * p.B + b] = clipped;
  }

  void find_exponent(const ThreadView& view, const StepView& step, int64_t b) const {
    const int first = view.part / plan.unit_parts * plan.unit_parts;
    view.scales[b] = flow.rescale(view.part, first, plan.unit_parts, step.t, b, view.flags[b] & inactive);
    if (view.j.begin == 0 && view.j.end > 0) p.exponent[step.t * p.B + b] = flow.exponent(view.part, b);
  }

  TT_INLINE V carried(const ThreadView& view, int i, int64_t b, int64_t j) const {
    const V value = load<V>(units(i, b, j));
    return rescales ? value * view.scales[b] : value;
  }

  int64_t vectors(int state) const { return state == 0 ? plan.hidden_vectors : plan.unit_vectors; }

  // The carried gradient of vector j of a state.
  S* units(int state, int64_t b, int64_t j) const { return carry[state] + (b * vectors(state) + j) * W; }

  const S* saved_at(const StepView& step, int64_t b, int64_t j) const {
    return step.saved + saved_offset<C>(b, j, p.B, plan.unit_vectors) * C::saved * W;
  }

  // Vector j of units, or of features of h, of one sequence at one step; see step/backward.hpp.
  struct At {
    using V = Vec<S>;

    const RecurrentBackward& loop;
    const ThreadView& view;
    const StepView& step;
    int64_t b, j;
    int64_t count;  // of units or features from the vector's first lane on
    int flags;

    TT_INLINE V carried(int i) const { return i == 0 ? load<V>(loop.units(0, b, j)) : loop.carried(view, i, b, j); }
    TT_INLINE void set_carried(int i, V d) const { store(loop.units(i, b, j), d); }
    TT_INLINE void load_saved(V* a) const {
      for (int i = 0; i < C::saved; ++i) a[i] = load<V>(loop.saved_at(step, b, j) + i * W);
      prefetch_next();
    }
    TT_INLINE V old_state(int i) const { return load_some<V>(step.before[i] + b * loop.p.H + j * W, loop.p.H - j * W); }
    TT_INLINE V new_state(int i) const { return load_some<V>(step.after[i] + b * loop.p.H + j * W, loop.p.H - j * W); }
    TT_INLINE void load_unit_parameters(V* w) const { load_units<values>(loop.unit_packed, j, w); }
    TT_INLINE void add_unit_gradients(const V* dw) const {
      for (int k = 0; k < values; ++k) loop.deltas.unit_gradients.add(step.s, b, j, k, dw[k]);
    }
    TT_INLINE void skip_unit_gradients() const {}

    TT_INLINE bool has_output_loss() const { return loop.p.d_output.data && !loop.asks_flow; }
    TT_INLINE V output_loss() const {
      const View<const S>& d = loop.p.d_output;
      return load_some<V>(d.data + step.t * d.time + b * d.batch + j * W, loop.p.P - j * W);
    }
    TT_INLINE bool has_cell_loss() const { return loop.p.d_cell; }
    TT_INLINE V cell_loss() const {
      return load_some<V>(loop.p.d_cell + (step.t * loop.p.B + b) * loop.p.H + j * W, loop.p.H - j * W);
    }

    TT_INLINE bool zoned(int i) const { return loop.zoned[i]; }
    TT_INLINE V fraction(int i) const { return zoneout_fraction(loop.zoneout, i, step.t, b, j); }
    TT_INLINE V keep(V value) const { return keep_some<S>(value, count); }

    TT_INLINE void set_state_gradient(int i, V total) const {
      if (!loop.d_states[i]) return;
      const int64_t width = i == 0 ? loop.p.P : loop.p.H;
      S* const to = loop.d_states[i] + (step.state_row + b) * width + j * W;
      if (loop.streams[i]) stream(to, total);
      else store_some(to, total, width - j * W);
    }
    TT_INLINE void set_deltas(const V* dz, const V* dx, const V* dr) const {
      const int64_t H = loop.p.H;
      if (loop.p.d_gates)
        for (int g = 0; g < G; ++g) store_some(loop.p.d_gates + ((step.t * loop.p.B + b) * G + g) * H + j * W, dz[g], H - j * W);
      for (int g = 0; g < G; ++g) loop.deltas.inputs.delta.put(step.delta_row + b, (j * G + g) * W, dx[g]);
      if constexpr (C::split)
        for (int g = 0; g < R; ++g) loop.deltas.recurrent.delta.put(step.delta_row + b, (j * R + g) * W, dr[g]);
    }
    TT_INLINE void set_second_delta(V d) const { loop.deltas.second.delta.put(step.delta_row + b, j * W, d); }
    TT_INLINE void set_middle(V m) const {
      store_some(loop.deltas.middle + (step.row + b) * loop.p.H + j * W, m, loop.p.H - j * W);
    }

   private:
    // The rows that the next step reads are too far apart for the hardware prefetcher.
    TT_INLINE void prefetch_next() const {
      for (int i = 0; i < C::saved; ++i)
        __builtin_prefetch(step.next_saved + (saved_offset<C>(b, j, loop.p.B, loop.plan.unit_vectors) * C::saved + i) * W, 0, 2);
      __builtin_prefetch(step.next_cell + b * loop.p.H + j * W, 0, 2);
      if (step.next_loss) __builtin_prefetch(step.next_loss + b * loop.p.d_output.batch + j * W, 0, 2);
    }
  };

  // `width`: units, or features of h, in a row.
  TT_INLINE BackwardStep<C, At> cell_step(const ThreadView& view, const StepView& step, int64_t b, int64_t j,
                                          int64_t width) const {
    return {{*this, view, step, b, j, width - j * W, view.flags[b]}};
  }

  // A row that stores its gradients through the step.
  struct Row : WholeRow<C, S> {
    const RecurrentBackward& loop;
    const ThreadView& view;
    const StepView& step;
    int64_t b;

    int variant() const { return loop.p.variant; }
    TT_INLINE BackwardStep<C, At> at(int64_t j) const { return loop.cell_step(view, step, b, j, loop.p.H); }
    TT_INLINE void arriving(int64_t j, V* dn, V* kept) const { at(j).load_all_gradients(at(j).at.carried(0), dn, kept); }
    TT_INLINE V dh(int64_t j) const {
      V dn[C::states], kept[C::states] = {};
      arriving(j, dn, kept);
      return dn[0];
    }
    TT_INLINE void set_states(int64_t j, const V* dn, const V* ds, const V* kept) const {
      at(j).store_state_gradient(dn, ds, kept);
    }
    TT_INLINE void add_weight(int64_t j, int k, V value) const { loop.deltas.unit_gradients.add(step.s, b, j, k, value); }
    TT_INLINE void set_delta(int64_t j, V* dz, V* dx, V* dr) const {
      for (int g = 0; g < G; ++g) dz[g] = this->keep(j, dz[g]), dx[g] = this->keep(j, dx[g]), dr[g] = this->keep(j, dr[g]);
      at(j).at.set_deltas(dz, dx, dr);
    }
  };

  const Backward<S>& p;
  const int threads;
  Engine engine;
  const Plan plan;
  const Steps<S> steps;
  const History<S>& history;
  const Zoneout<S> zoneout;
  const bool zoned[max_states] = {zoneout.any(0), zoneout.any(1)};
  const bool asks_flow = p.exponent, rescales = p.clip > 0 || asks_flow;
  RecurrentGradient<C, S, Tiles> gradient;
  typename Engine::Weight* second_packed;
  // (B, features of h), (B, units): the elementwise part of the carried gradient; all of it if it is rescaled
  S* carry[max_states];
  const S* unit_packed;  // (units, values, lanes)
  CarriedNorms<S, C::states> carried_norms;
  ScaledGradient<S> flow;
  S* d_states[max_states];        // (rows, B, P), (rows, B, H): of all timesteps, or of the chunk for the flow's norms; or null
  bool streams[max_states] = {};  // whether d_states bypass the cache
  S* row_scratch;                 // one row per thread
};

}  // namespace throughtime::TT_ISA
