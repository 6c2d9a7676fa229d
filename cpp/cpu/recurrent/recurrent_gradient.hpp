// The recurrent product of the backward: the gradient that h receives from the later step, through W_hh.
#pragma once

#include "deltas.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class RecurrentGradient {
  using V = Vec<S>;
  using Engine = typename Tiles::Engine;
  using Rows = typename Engine::Rows;
  using ThreadView = BackwardThreadView<C, S, Tiles>;
  static constexpr int W = lanes<S>, R = C::recurrent, back = Tiles::Backward::vectors;
  static constexpr const S* none = nullptr;  // no bias

 public:
  // `rescales`: the gradient of h is rescaled before it enters a step, which needs the sums of all parts.
  RecurrentGradient(const Backward<S>& problem, const Host& host, const Engine& of_host, const Plan& of_problem,
                    const Deltas<C, S, Tiles>& of_loop, bool rescales)
      : p(problem),
        engine(of_host),
        plan(of_problem),
        deltas(of_loop),
        exchanges(Engine::overlaps && C::phases == Phases::one && plan.unit_parts == 2 && !rescales) {
    const int64_t vectors = Tiles::Backward::panels(plan.hidden_vectors) * back;
    packed = scratch<typename Engine::Weight>(host, engine.packed_size(deltas.recurrent.row_size(), vectors));
    if constexpr (Engine::overlaps) {
      halves_size = vectors * p.B * W;
      halves = scratch<S>(host, 2 * plan.unit_parts * halves_size);
    }
  }

  // Packs one part of the weights, before anything else runs.
  void pack(int parts, int part, Poll& poll) const {
    const Range panels = share(Tiles::Backward::panels(plan.hidden_vectors), parts, part);
    in_pieces(panels, deltas.recurrent.row_size() * back * W, poll, [&](Range own) {
      engine.template pack_columns<back>(p.weights[weight_hh], p.P, deltas.recurrent.order, own, packed);
    });
  }

  // Whether two parts exchange their halves of a step's sums instead of its delta.
  bool exchanges_halves() const { return exchanges; }

  // Calls put(b, j, h) with the gradient that step `later` sends to h through its recurrent product; zero if no gradient
  // crosses, whatever the weights hold. A product of two halves calls ready() between them; false: the call must stop.
  template <class Put>
  void compute(const ThreadView& view, int64_t later, const Ready& ready, const Put& put) {
    const Rows rows = deltas.step_rows(deltas.recurrent, later, view);
    if constexpr (Engine::overlaps) {
      compute_in_halves(view, later, rows, ready, put);
    } else {
      const int64_t K = later < p.T ? deltas.recurrent.row_size() : 0;
      const Panels panels = panels_of(view.q, later);
      const auto tile = [&](int64_t first, int count, int64_t j, const V* sums) {
        for (int64_t b = first; b < first + count; ++b, sums += back)
          for (int v = 0; v < back && j + v < view.q.end; ++v) put(b, j + v, crosses(view.later_flags[b]) ? sums[v] : V{});
      };
      if constexpr (Tiles::halves)
        engine.template product_of_halves<typename Tiles::Backward>(K, rows, view.b, packed, panels, none, sink<S>(tile),
                                                                    {view.j.begin * R * W, view.j.end * R * W}, ready,
                                                                    view.unit->steps());
      else
        engine.template product<typename Tiles::Backward>(K, rows, view.b, packed, panels, none, sink<S>(tile),
                                                          view.unit->steps());
    }
  }

  // Computes this part's half of the sums for the other part's units, and sends it.
  TT_PHASE void send_half(const ThreadView& view, int64_t later) {
    if constexpr (Engine::overlaps) {
      const int64_t K = depth(later), part = view.part % 2;
      if (K == 0) return;
      const auto send = sends_to(half_sums(later, int(part)));
      const Panels others = panels_of(plan.hidden(view.part + 1 - 2 * int(part)), later);
      start_half(view, half_of(view, K), K, deltas.step_rows(deltas.recurrent, later, view), others, sink<S>(send));
      view.unit->steps().finish();
    }
  }

  static Panels panels_of(Range j, int64_t s) { return {j.begin / back, ceil_div(j.end, back), s % 2 != 0}; }

 private:
  // `compute` on tiles. For any number of threads, each sum is that over the lower half of the units plus that over the upper
  // half, each started from zero. Each of two parts owns one half: it first sums that half for the other's units and sends it,
  // then for its own. Sums take fewer cache lines than delta: 256 instead of 1536 per step for an LSTM of 256 units and 32
  // sequences.
  template <class Put>
  void compute_in_halves(const ThreadView& view, int64_t later, const Rows& rows, const Ready& ready, const Put& put) {
    const int64_t K = depth(later), middle = middle_of(K);
    const Panels own = panels_of(view.q, later);
    const S* const received = half_sums(later, exchanges ? 1 - view.part % 2 : view.part % plan.unit_parts);
    const auto tile = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && q + v < view.q.end; ++v) {
          const V sum = middle > 0 ? load<V>(half_sum(received, b, q + v)) + sums[v] : sums[v];
          put(b, q + v, crosses(view.later_flags[b]) ? sum : V{});
        }
    };
    if (exchanges && K > 0) {
      const Range half = half_of(view, K);
      // With a single block of rows, `tile` gets the first panel's sums only during the second panel.
      const bool ahead = view.b.end - view.b.begin <= Tiles::Backward::rows;
      if (ahead) start_half(view, half, K, rows, {own.at(0), own.at(0) + 1}, sink<S>(tile));
      if (!ready()) return view.unit->steps().finish();
      start_half(view, half, K, rows, ahead ? own.but_first() : own, sink<S>(tile));
      view.unit->steps().finish();
    } else {
      const auto send = sends_to(half_sums(later, view.part % plan.unit_parts));
      if (middle > 0) start_half(view, {0, middle}, K, rows, own, sink<S>(send));
      start_half(view, {middle, K}, K, rows, own, sink<S>(tile));
      view.unit->steps().finish();
    }
  }

  auto sends_to(S* sent) const {
    return [this, sent](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b)
        for (int v = 0; v < back; ++v) store(half_sum(sent, b, q + v), *sums++);
    };
  }

  void start_half(const ThreadView& view, Range half, int64_t K, const Rows& rows, Panels panels, Sink<S> to) {
    engine.template start_product<typename Tiles::Backward>({half.begin, half.end, K}, rows, view.b, packed, panels, none, to,
                                                            view.unit->steps());
  }

  int64_t depth(int64_t later) const { return later < p.T ? deltas.recurrent.row_size() : 0; }
  int64_t middle_of(int64_t K) const { return K > 0 ? lower_units() * R * W : 0; }
  Range half_of(const ThreadView& view, int64_t K) const {
    return view.part % 2 == 0 ? Range{0, middle_of(K)} : Range{middle_of(K), K};
  }

  int64_t lower_units() const { return share(plan.unit_vectors, 2, 0, Plan::quantum).end; }
  // The half sums that a part sends: (panels of units, B, back, lanes). Two slots, for even and odd steps.
  S* half_sums(int64_t step, int part) const { return halves + (step % 2 * plan.unit_parts + part) * halves_size; }
  template <class P>
  P* half_sum(P* sums, int64_t b, int64_t q) const {
    return sums + ((q / back * p.B + b) * back + q % back) * W;
  }

  const Backward<S>& p;
  Engine engine;
  const Plan plan;
  const Deltas<C, S, Tiles>& deltas;
  const bool exchanges;
  typename Engine::Weight* packed;
  S* halves;  // see half_sums
  int64_t halves_size;
};

}  // namespace throughtime::TT_ISA
