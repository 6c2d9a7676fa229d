// The time loop, backward. Chunk by chunk from the end: the steps give the chunk's delta (the gradient of the pre-activations);
// while it is in cache, products take it into dx, dW_ih, dW_hh. What the tape does not hold, states or saved values, the forward
// loop computes again on the way.
#pragma once

#include "clip.hpp"
#include "flow.hpp"
#include "forward.hpp"
#include "norms.hpp"
#include "side.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class BackwardLoop {
  using V = Vec<S>;
  using Again = ForwardLoop<C, S, Tiles>;
  using Engine = typename Tiles::Engine;
  using ChunkEngine = typename Tiles::ChunkEngine;
  using Product = typename Tiles::Product;
  using Rows = typename Engine::Rows;
  using Side = TT_ISA::Side<S, Tiles>;
  using Unit = typename Again::Unit;
  using Weight = typename Engine::Weight;
  using ChunkWeight = typename ChunkEngine::Weight;
  static constexpr int L = lanes<S>, G = C::gates, R = C::recurrent, back = Tiles::Backward::vectors;
  static constexpr int values = unit_values<C>();
  static constexpr bool two_products = C::phases == Phases::two_products, whole_rows = C::phases == Phases::rows;
  static constexpr int first_state = C::projects ? 1 : 0;  // of those that the cell's equations give
  static constexpr const S* none = nullptr;                // no bias

 public:
  static void run(const Backward<S>& problem, const Host& host) {
    BackwardLoop loop(problem, host);
    host.run(host.context, [](void* self, int thread) { static_cast<BackwardLoop*>(self)->work(thread); }, &loop);
  }

 private:
  BackwardLoop(const Backward<S>& problem, const Host& host)
      : p(problem),
        host(host),
        team(host),
        engine(host),
        chunk_engine(host),
        plan(make_plan<C, Tiles>(p, host, engine)),
        steps{p, p.truncate},
        history{p, p.B * plan.unit_vectors * C::saved * L},
        zoneout{p},
        forward{p, {}} {
    chunk_rows = plan.chunk * p.B;
    delta_rows = chunk_rows + p.B;
    column_size = ChunkEngine::columns_padded(chunk_rows);
    panels_size = chunk_engine.packed_size(column_size, ChunkEngine::panels_at_once * Product::vectors);
    panels = scratch<ChunkWeight>(host, host.threads * panels_size);
    // A step's delta must outlive its chunk by one step, so steps take turns in chunk + 1 places. Where a cell is not split, x
    // and h share theirs.
    const bool readable = asks_norms() || !Engine::splits;
    const auto prepare = [&](Side& side, Interleaved order, int64_t features, const Side* shared = nullptr) {
      side.prepare(chunk_engine, host, order, asks_weights() ? features : 0, delta_rows, column_size, readable, shared);
    };
    prepare(inputs, {G, p.H, L}, p.I);
    prepare(recurrent, {R, p.H, L}, p.P, C::split ? nullptr : &inputs);
    if (two_products) prepare(second, {1, p.P, L}, p.H);
    const int64_t input_vectors = Product::panels(ceil_div(p.I, L)) * Product::vectors;
    weight_packed = scratch<ChunkWeight>(host, chunk_engine.packed_size(inputs.row_size(), input_vectors));
    recurrent_packed = scratch<Weight>(host, engine.packed_size(recurrent.row_size(), back_panels(plan.hidden_vectors) * back));
    for (int i = 0; i < C::states; ++i) carry[i] = scratch<S>(host, p.B * vectors(i) * L);
    zeros = scratch<S>(host, p.P);
    room_rows = column_size;  // a left operand of so many rows, and the rows to be transposed
    rows = scratch<const S*>(host, 3 * host.threads * room_rows);
    rules = scratch<uint8_t>(host, 2 * host.threads * p.B);
    scales = scratch<S>(host, host.threads * p.B);
    if (p.clip > 0) carried_norms.prepare(host, p.B, plan.hidden_vectors, plan.unit_vectors);
    for (int i = 0; i < C::states; ++i) {
      const int64_t width = history.width(i);
      d_states[i] = p.d_states[i];
      streams[i] = Engine::overlaps && d_states[i] && width % L == 0 && streamable(d_states[i], p.T * p.B * width);
    }
    if constexpr (Engine::overlaps) {
      halves_size = back_panels(plan.hidden_vectors) * back * p.B * L;
      halves = scratch<S>(host, 2 * plan.unit_parts * halves_size);
    }
    if (asks_flow()) flow.prepare(p, host), d_states[0] = scratch<S>(host, chunk_rows * p.P), streams[0] = false;
    if (asks_norms()) norms = scratch<double>(host, host.threads * norms_room().total());
    __builtin_memset(zeros, 0, size_t(p.P) * sizeof(S));
    __builtin_memset(rules, 0, size_t(2 * host.threads * p.B));
    if constexpr (two_products) {
      second_packed = scratch<Weight>(host, engine.packed_size(second.row_size(), back_panels(plan.unit_vectors) * back));
      middle = scratch<S>(host, chunk_rows * p.H);
    }
    if constexpr (whole_rows) notes = scratch<S>(host, host.threads * Row::notes_size(p.H));
    if constexpr (values > 0) {
      unit_packed = pack_unit_weights<C>(p, host);
      unit_gradients.prepare(host, p.B, p.H, asks_norms() ? plan.chunk : 1);
    }
    if (p.every || (C::saved && !p.saved)) prepare_again();
    all_parts = scratch<Mine>(host, host.threads);
    for (int i = 0; i < host.threads; ++i) all_parts[i] = part_of_work(i);
  }

  static int64_t back_panels(int64_t vectors) { return Tiles::Backward::panels(vectors); }
  int64_t vectors(int state) const { return state == 0 ? plan.hidden_vectors : plan.unit_vectors; }

  void prepare_again() {
    // At least a chunk, for products of few rows are slow.
    if (p.every) history.apart = ceil_div(plan.chunk, p.every) * p.every;
    history.window_rows = history.apart;
    for (int i = 0; p.every && i < C::states; ++i) history.window[i] = scratch<S>(host, history.apart * p.B * history.width(i));
    history.saved_rows = p.every ? history.apart : plan.chunk;
    history.saved_window = scratch<S>(host, history.saved_rows * history.saved_size);
    History<S> own = history;
    own.again = true;
    again = new (scratch<Again>(host, 1)) Again(forward, host, team, own);
  }

  // What one part of the work is.
  struct Mine {
    int part;
    Range b, j, q;            // sequences, vectors of units and of features of h
    const S **rows, **other;  // room for a row of the chunk each
    S** targets;
    ChunkWeight* panels;     // of the chunk's delta
    uint8_t *rules, *later;  // of the step, and of the step after
    S* scales;               // what clipping makes of each sequence's carried gradient
    Unit* unit = nullptr;    // of the thread that runs it
  };

  Mine part_of_work(int part) const {
    const S** const own = rows + 3 * part * room_rows;
    return {part,
            plan.rows(p.B, part),
            plan.units(part),
            plan.hidden(part),
            own,
            own + room_rows,
            const_cast<S**>(own + 2 * room_rows),
            panels + part * panels_size,
            rules + 2 * part * p.B,
            rules + (2 * part + 1) * p.B,
            scales + part * p.B};
  }

  Mine mine(int part, Unit& unit) const {
    Mine own = all_parts[part];
    own.unit = &unit;
    return own;
  }

  // each(body): a phase of the team's, body(mine) for every part.
  auto each_part(int thread, Unit& unit) {
    return [this, thread, &unit](const auto& body) { return team.each(thread, [&](int part) { body(mine(part, unit)); }); };
  }

  // Where one step finds its rows.
  struct Moment {
    int64_t s, t;
    const S* before[C::states];  // (B, H)
    const S* after[C::states];
    const S* saved;
    int64_t delta_row;                            // among all places
    int64_t row;                                  // among the chunk's
    int64_t state_row;                            // among those of d_states
    const S *next_saved, *next_cell, *next_loss;  // of the step taken next, or of this one
  };

  TT_PHASE Moment moment(int64_t s, int64_t begin) const {
    const int64_t t = steps.time(s), row = (s - begin) * p.B, next = s > 0 ? s - 1 : s;
    Moment at{s, t, {}, {}, history.saved(steps, s), delta_row(s), row, asks_flow() ? row : t * p.B, {}, {}, {}};
    at.next_saved = history.saved(steps, next), at.next_cell = history.state(C::states - 1, next);
    if (p.d_output.data) at.next_loss = p.d_output.data + steps.time(next) * p.d_output.time;
    for (int i = 0; i < C::states; ++i) at.before[i] = history.state(i, s), at.after[i] = history.state(i, s + 1);
    return at;
  }

  int64_t delta_row(int64_t s) const { return s % (plan.chunk + 1) * p.B; }

  bool asks_norms() const { return p.norms[0] != nullptr; }
  bool asks_weights() const { return p.d_weights[weight_ih] != nullptr; }
  bool asks_flow() const { return p.exponent != nullptr; }
  typename StepNorms<S>::Room norms_room() const { return {p.B, inputs.row_size(), p.I, p.H > p.P ? p.H : p.P}; }

  void work(int thread) {
    const FlushSubnormals flush;
    Unit unit;
    team.enter(thread);
    const auto each = each_part(thread, unit);
    if (!each([&](const Mine& mine) { prepare(mine); })) return;
    for (int64_t end = p.T; end > 0;) {
      const int64_t first = history.window_before(end);
      if (p.every && !again->advance(thread, unit, first, end)) return;
      for (; end > first; end = end > first + plan.chunk ? end - plan.chunk : first)
        if (!chunk(thread, unit, end > first + plan.chunk ? end - plan.chunk : first, end)) return;
    }
    stream_fence();
    if (exchanges && p.d_initial[0]) each([&](const Mine& mine) { send_half(mine, 0); });
    each([&](const Mine& mine) {
      if (p.d_initial[0]) initial_gradient(mine);
      if (asks_weights()) unpack_weights(mine);
    });
  }

  // False when the call is to stop.
  bool chunk(int thread, Unit& unit, int64_t begin, int64_t end) {
    const auto each = each_part(thread, unit);
    if (team.interrupted(thread)) return false;
    if (again && !p.every && !again->save_again(thread, unit, begin, end)) return false;
    if (asks_weights() && !each([&](const Mine& mine) { transpose_operands(mine, begin, end); })) return false;
    if (!take_steps(thread, unit, begin, end)) return false;
    if (two_products && asks_weights() && !each([&](const Mine& mine) { transpose_middle(mine, begin, end); })) return false;
    if (values > 0 && asks_norms() && !each([&](const Mine& mine) { step_norms(mine, begin, end); })) return false;
    return each([&](const Mine& mine) {
      if (asks_flow()) flow_norms(mine, begin, end);
      if (p.d_input.data) input_gradient(mine, begin, end);
      if (values == 0 && asks_norms()) step_norms(mine, begin, end);
      if (asks_weights()) weight_gradients(mine, begin, end);
    });
  }

  // Where parts share no sequence, none waits for another before the chunk's end; a product of two halves waits between them.
  bool take_steps(int thread, Unit& unit, int64_t begin, int64_t end) {
    if (exchanges) return exchanging_steps(thread, unit, begin, end);
    if constexpr (Tiles::halves && C::phases == Phases::one)
      if (plan.unit_parts > 1 && !rescales)
        return team.overlapped(thread, end - begin, [&](int part, int64_t i, const auto& finished) {
          step(mine(part, unit), moment(end - 1 - i, begin), when(finished));
        });
    const auto each = each_part(thread, unit);
    if (plan.unit_parts > 1) return steps_of_chunk(each, begin, end);
    return each([&](const Mine& mine) { steps_of_chunk(OnePart<Mine>{mine}, begin, end); });
  }

  template <class Each>
  bool steps_of_chunk(const Each& each, int64_t begin, int64_t end) {
    for (int64_t s = end - 1; s >= begin; --s) {
      const Moment at = moment(s, begin);
      if (rescales && !each([&](const Mine& mine) { gather(mine, at); })) return false;
      if (!each([&](const Mine& mine) { step(mine, at, {}); })) return false;
      if constexpr (two_products) {
        if (!each([&](const Mine& mine) { second_product(mine, at); })) return false;
      } else if constexpr (whole_rows) {
        if (!each([&](const Mine& mine) { apply_rows(mine, at); })) return false;
      }
    }
    return true;
  }

  // Steps whose parts exchange halves of their sums. No thread rests on the way, and none runs another's part while it waits: its
  // tiles still hold sums of its own.
  bool exchanging_steps(int thread, Unit& unit, int64_t begin, int64_t end) {
    int64_t phase = 0;
    for (int64_t s = end - 1; s >= begin; --s) {
      const int64_t sending = team.start(thread, [&](int part) { send_half(mine(part, unit), s + 1); });
      const auto sent = [&] { return team.finish(thread, sending); };
      phase = team.start(thread, [&](int part) { step(mine(part, unit), moment(s, begin), when(sent)); });
    }
    return team.finish(thread, phase);
  }

  TT_PHASE void prepare(const Mine& mine) {
    const int t = mine.part, n = host.threads;
    if (again) again->pack(t);
    const Range input_panels = share(p.d_input.data ? Product::panels(ceil_div(p.I, L)) : 0, n, t);
    chunk_engine.template pack_columns<Product::vectors>(p.weights[weight_ih], p.I, inputs.order, input_panels, weight_packed);
    const Range recurrent_panels = share(back_panels(plan.hidden_vectors), n, t);
    engine.template pack_columns<back>(p.weights[weight_hh], p.P, recurrent.order, recurrent_panels, recurrent_packed);
    if constexpr (two_products) {
      const Range second_panels = share(back_panels(plan.unit_vectors), n, t);
      engine.template pack_columns<back>(second_part<C>(p.weights, p, weight_hh), p.H, second.order, second_panels,
                                         second_packed);
    }
    for_sides([&](const Side& side) { side.clear(n, t); });
    if constexpr (values > 0) unit_gradients.clear(n, t);
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) mine.scales[b] = 1;
    for (int i = 0; i < C::states; ++i)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b) {
        const Range own = i == 0 ? mine.q : mine.j;
        const int64_t width = history.width(i);
        for (int64_t j = own.begin; j < own.end; ++j)
          store(units(i, b, j), p.d_final[i] ? load_some<V>(p.d_final[i] + b * width + j * L, width - j * L) : V{});
      }
  }

  template <class Take>
  void for_sides(const Take& take) const {
    take(inputs);
    take(recurrent);
    if constexpr (two_products) take(second);
  }

  // What is carried to units j of a state.
  S* units(int state, int64_t b, int64_t j) const { return carry[state] + (b * vectors(state) + j) * L; }

  // The chunk's x and h, transposed; rows that take no part are zero whatever they hold (padding may be NaN).
  TT_PHASE void transpose_operands(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * p.B;
    const Range own = share(ChunkEngine::columns_padded(count), host.threads, mine.part, L);
    for (int64_t r = own.begin; r < own.end; ++r) {
      if (r >= count) {
        mine.rows[r] = mine.other[r] = nullptr;
        continue;
      }
      const int64_t s = begin + r / p.B, b = r % p.B;
      const int rule = steps.ruled() ? steps.rule(s, b) : 0;
      mine.rows[r] = rule & inactive ? nullptr : x(s, b);
      mine.other[r] = rule & (inactive | fresh) ? nullptr : history.state(0, s) + b * p.P;
    }
    inputs.transpose(mine.rows, own);
    recurrent.transpose(mine.other, own);
  }

  // The second product's operand, which the steps have made.
  TT_PHASE void transpose_middle(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * p.B;
    const Range own = share(ChunkEngine::columns_padded(count), host.threads, mine.part, L);
    for (int64_t r = own.begin; r < own.end; ++r) {
      const bool idle = r >= count || (steps.ruled() && steps.rule(begin + r / p.B, r % p.B) & inactive);
      mine.rows[r] = idle ? nullptr : middle + r * p.H;
    }
    second.transpose(mine.rows, own);
  }

  const S* x(int64_t s, int64_t b) const { return p.x.data + steps.time(s) * p.x.time + b * p.x.batch; }

  // The recurrent product of the step after, and the cell's first phase.
  TT_PHASE void step(const Mine& mine, const Moment& at, const Ready& ready) {
    if (steps.ruled()) find_rules(mine, at.s);
    receive(mine, at, ready, [&](int64_t b, int64_t q, V dh) {
      if constexpr (C::phases == Phases::one) apply(mine, at, b, q, dh);
      else if constexpr (two_products) arrive(mine, at, b, q, dh);
      else store(units(0, b, q), dh);
    });
  }

  // put(b, q, dh): the gradient that h receives from the step after.
  template <class Put>
  void receive(const Mine& mine, const Moment& at, const Ready& ready, const Put& put) {
    if (!rescales) {
      for_carried(mine, at.s + 1, ready, [&](int64_t b, int64_t q, V h) { put(b, q, load<V>(units(0, b, q)) + h); });
      return;
    }
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) asks_flow() ? find_exponent(mine, at, b) : find_scale(mine, at, b);
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
      for (int64_t q = mine.q.begin; q < mine.q.end; ++q) {
        const V scaled = load<V>(units(0, b, q)) * mine.scales[b];
        put(b, q, asks_flow() ? scaled + flow.loss(mine.part, at.t, b, q) : scaled);
      }
  }

  // Where the carried gradient is rescaled, its norm comes first, which takes all parts.
  TT_PHASE void gather(const Mine& mine, const Moment& at) {
    if (steps.ruled()) find_rules(mine, at.s);
    if (asks_flow()) flow.clear(mine.part, mine.b);
    for_carried(mine, at.s + 1, {}, [&](int64_t b, int64_t q, V h) {
      store(units(0, b, q), load<V>(units(0, b, q)) + h);
      gather(mine, 0, b, q);
    });
    for (int i = 1; i < C::states; ++i)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        for (int64_t j = mine.j.begin; j < mine.j.end; ++j) gather(mine, i, b, j);
  }

  TT_INLINE void gather(const Mine& mine, int i, int64_t b, int64_t j) const {
    if (asks_flow()) flow.gather(mine.part, b, load<V>(units(i, b, j)));
    else carried_norms.gather(i, b, j, units(i, b, j));
  }

  void find_rules(const Mine& mine, int64_t s) {
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) {
      mine.rules[b] = uint8_t(s >= 0 ? steps.rule(s, b) : 0);
      mine.later[b] = uint8_t(s + 1 < p.T ? steps.rule(s + 1, b) : 0);
    }
  }

  // put(b, j, h): what step `later` sends back to h through its recurrent product; zero where no gradient crosses, whatever the
  // weights hold. Where the product is two halves, it asks ready() between them; false: the call is to stop.
  template <class Put>
  void for_carried(const Mine& mine, int64_t later, const Ready& ready, const Put& put) {
    const Rows rows = delta_rows_of(recurrent, delta_row(later), mine);
    if constexpr (Engine::overlaps) {
      for_carried_in_halves(mine, later, rows, ready, put);
    } else {
      const int64_t K = later < p.T ? recurrent.row_size() : 0;
      const Panels panels = panels_of(mine.q, later);
      const auto tile = [&](int64_t first, int count, int64_t j, const V* sums) {
        for (int64_t b = first; b < first + count; ++b, sums += back)
          for (int v = 0; v < back && j + v < mine.q.end; ++v) put(b, j + v, mine.later[b] ? V{} : sums[v]);
      };
      if constexpr (Tiles::halves)
        engine.template product_of_halves<typename Tiles::Backward>(
            K, rows, mine.b, recurrent_packed, panels, none, sink<S>(tile), {mine.j.begin * R * L, mine.j.end * R * L}, ready);
      else
        engine.template product<typename Tiles::Backward>(K, rows, mine.b, recurrent_packed, panels, none, sink<S>(tile),
                                                          mine.unit->steps());
    }
  }

  // The same on tiles. A sum is that over the lower half of the units plus that over the upper half, each from zero, whatever the
  // number of threads. Each of two parts owns one half: it first sums its half for the other's units and sends that, then for
  // its own units. Sums are fewer cache lines than delta: 256 instead of 1536 a step for an LSTM of 256 units and 32 sequences.
  template <class Put>
  void for_carried_in_halves(const Mine& mine, int64_t later, const Rows& rows, const Ready& ready, const Put& put) {
    const int64_t K = depth(later), middle = middle_of(K);
    const Panels own = panels_of(mine.q, later);
    const S* const received = half_sums(later, exchanges ? 1 - mine.part % 2 : mine.part % plan.unit_parts);
    const auto tile = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && q + v < mine.q.end; ++v) {
          const V sum = middle > 0 ? load<V>(half_sum(received, b, q + v)) + sums[v] : sums[v];
          put(b, q + v, mine.later[b] ? V{} : sum);
        }
    };
    if (exchanges && K > 0) {
      const Range half = half_of(mine, K);
      // With a single block of rows, `tile` gets no sums before the second panel.
      const bool ahead = mine.b.end - mine.b.begin <= Tiles::Backward::rows;
      if (ahead) start_half(mine, half, K, rows, {own.turn(0), own.turn(0) + 1}, sink<S>(tile));
      if (!ready()) return mine.unit->steps().finish();
      start_half(mine, half, K, rows, ahead ? own.but_first() : own, sink<S>(tile));
      mine.unit->steps().finish();
    } else {
      const auto send = sends_to(half_sums(later, mine.part % plan.unit_parts));
      if (middle > 0) start_half(mine, {0, middle}, K, rows, own, sink<S>(send));
      start_half(mine, {middle, K}, K, rows, own, sink<S>(tile));
      mine.unit->steps().finish();
    }
  }

  // Exchanged sums: this part's half of those for the other part's units.
  TT_PHASE void send_half(const Mine& mine, int64_t later) {
    if constexpr (Engine::overlaps) {
      const int64_t K = depth(later), part = mine.part % 2;
      if (K == 0) return;
      const auto send = sends_to(half_sums(later, int(part)));
      const Panels others = panels_of(plan.hidden(mine.part + 1 - 2 * int(part)), later);
      start_half(mine, half_of(mine, K), K, delta_rows_of(recurrent, delta_row(later), mine), others, sink<S>(send));
      mine.unit->steps().finish();
    }
  }

  auto sends_to(S* sent) const {
    return [this, sent](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t b = first; b < first + count; ++b)
        for (int v = 0; v < back; ++v) store(half_sum(sent, b, q + v), *sums++);
    };
  }

  void start_half(const Mine& mine, Range half, int64_t K, const Rows& rows, Panels panels, Sink<S> to) {
    engine.template start_product<typename Tiles::Backward>({half.begin, half.end, K}, rows, mine.b, recurrent_packed, panels,
                                                            none, to, mine.unit->steps());
  }

  int64_t depth(int64_t later) const { return later < p.T ? recurrent.row_size() : 0; }
  int64_t middle_of(int64_t K) const { return K > 0 ? lower_units() * R * L : 0; }
  Range half_of(const Mine& mine, int64_t K) const {
    return mine.part % 2 == 0 ? Range{0, middle_of(K)} : Range{middle_of(K), K};
  }

  // The delta of a step as the recurrence reads it.
  Rows delta_rows_of(const Side& side, int64_t first, const Mine& mine) const {
    if constexpr (Engine::splits) {
      return side.delta.rows(first, mine.b, mine.rows);
    } else {
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b) mine.rows[b] = side.delta.row(first + b);
      return {mine.rows};
    }
  }

  int64_t lower_units() const { return share(plan.unit_vectors, 2, 0, Plan::quantum).end; }
  // The half sums that a thread sends: (panels of units, B, back, lanes). Two slots, for even and odd steps.
  S* half_sums(int64_t step, int part) const { return halves + (step % 2 * plan.unit_parts + part) * halves_size; }
  template <class P>
  P* half_sum(P* sums, int64_t b, int64_t q) const {
    return sums + ((q / back * p.B + b) * back + q % back) * L;
  }

  static Panels panels_of(Range j, int64_t s) { return {j.begin / back, ceil_div(j.end, back), s % 2 != 0}; }

  // Down to the norm `clip` where it is larger. The last step's carry is the final state's gradient, which is the loss's own and
  // stays.
  void find_scale(const Mine& mine, const Moment& at, int64_t b) const {
    const double norm = carried_norms.norm(b);
    const bool clips = norm > p.clip && !(mine.rules[b] & inactive) && !steps.last(at.s, b);
    mine.scales[b] = clips ? S(p.clip / norm) : S(1);
    if (mine.j.begin == 0 && mine.j.end > 0) p.clipped[at.t * p.B + b] = clips;
  }

  void find_exponent(const Mine& mine, const Moment& at, int64_t b) const {
    const int first = mine.part / plan.unit_parts * plan.unit_parts;
    mine.scales[b] = flow.rescale(mine.part, first, plan.unit_parts, at.t, b, mine.rules[b] & inactive);
    if (mine.j.begin == 0 && mine.j.end > 0) p.exponent[at.t * p.B + b] = flow.exponent(mine.part, b);
  }

  TT_INLINE V carried(const Mine& mine, int i, int64_t b, int64_t j) const {
    const V value = load<V>(units(i, b, j));
    return rescales ? value * mine.scales[b] : value;
  }

  // The cell of one vector of units of one sequence; dh is what h receives from the step after.
  TT_INLINE void apply(const Mine& mine, const Moment& at, int64_t b, int64_t j, V dh) {
    V dn[C::states], dx[G] = {}, dr[R] = {};
    dn[0] = dh;
    for (int i = 1; i < C::states; ++i) dn[i] = carried(mine, i, b, j);
    if (mine.rules[b] & inactive) {
      rest(at, b, j, dn, 0);
    } else {
      V a[C::saved + 1], old[C::states], next[C::states], ds[C::states], kept[C::states] = {};
      load_saved(mine, at, b, j, a, old);
      for (int i = 0; i < C::states; ++i)
        next[i] = load_some<V>(at.after[i] + b * p.H + j * L, p.H - j * L), add_loss(at, i, b, j, dn[i]);
      zone(at, b, j, dn, kept);
      if constexpr (values > 0) {
        V dw[values];
        C::backward(a, old, next, load_units<values>(unit_packed, j).value, dn, ds, dx, dr, dw);
        for (int k = 0; k < values; ++k) unit_gradients.add(at.s, b, j, k, dw[k]);
      } else {
        C::backward(a, old, next, dn, ds, dx, dr);
      }
      leave(mine, at, b, j, dn, ds, kept);
      for (int g = 0; g < G; ++g) dx[g] = keep_some<S>(dx[g], p.H - j * L);
      for (int g = 0; g < R; ++g) dr[g] = keep_some<S>(dr[g], p.H - j * L);
    }
    put_deltas(at, b, j, dx, dx, dr);
  }

  // Two products, first phase: all that h receives, and the delta of the second product.
  TT_INLINE void arrive(const Mine& mine, const Moment& at, int64_t b, int64_t q, V dh) {
    const int64_t n = p.P - q * L;
    V d_second = {};
    if (mine.rules[b] & inactive) {
      rest(at, b, q, &dh, 0, 1);
    } else {
      add_loss(at, 0, b, q, dh);
      V kept = {};
      if constexpr (C::projects) {
        d_second = dh;
        put_state(at, 0, b, q, dh);
        if (zoned[0]) kept = zoneout.part(0, at.t, b, q) * dh, d_second = dh - kept;
        store(units(0, b, q), mine.rules[b] & (fresh | cut) ? V{} : keep_some<S>(kept, n));
      } else {
        V a[C::saved], old[C::states];
        load_saved(mine, at, b, q, a, old);
        store(units(0, b, q), dh);
        zone(at, b, q, &dh, &kept);
        d_second = C::arrive(a, old, dh);
      }
      d_second = keep_some<S>(d_second, n);
    }
    second.delta.put(at.delta_row + b, q * L, d_second);
  }

  TT_PHASE void second_product(const Mine& mine, const Moment& at) {
    const auto put = [&](int64_t first, int count, int64_t j, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && j + v < mine.j.end; ++v) apply_second(mine, at, b, j + v, sums[v]);
    };
    const Rows rows = delta_rows_of(second, at.delta_row, mine);
    engine.template product<typename Tiles::Backward>(second.row_size(), rows, mine.b, second_packed, panels_of(mine.j, at.s),
                                                      none, sink<S>(put), mine.unit->steps());
  }

  // Second phase: dm is the gradient of what the second product multiplied with.
  TT_INLINE void apply_second(const Mine& mine, const Moment& at, int64_t b, int64_t j, V dm) {
    V dn[C::states], dx[G] = {}, dr[R] = {}, m = {};
    for (int i = first_state; i < C::states; ++i) dn[i] = i == 0 ? load<V>(units(0, b, j)) : carried(mine, i, b, j);
    if (mine.rules[b] & inactive) {
      rest(at, b, j, dn, 1);
    } else {
      V a[C::saved], old[C::states], ds[C::states], kept[C::states] = {};
      load_saved(mine, at, b, j, a, old);
      for (int i = 1; i < C::states; ++i) add_loss(at, i, b, j, dn[i]);
      zone(at, b, j, dn, kept);
      C::backward(a, old, dn, &dm, ds, dx, dr, &m);
      leave(mine, at, b, j, dn, ds, kept);
      for (int g = 0; g < G; ++g) dx[g] = keep_some<S>(dx[g], p.H - j * L);
      for (int g = 0; g < R; ++g) dr[g] = keep_some<S>(dr[g], p.H - j * L);
    }
    store_some(middle + (at.row + b) * p.H + j * L, m, p.H - j * L);
    put_deltas(at, b, j, dx, dx, dr);
  }

  // A row whose gradients go where they belong.
  struct Row : WholeRow<C, S> {
    const BackwardLoop& loop;
    const Mine& mine;
    const Moment& at;
    int64_t b;

    int variant() const { return loop.p.variant; }
    // All that the states after receive, but for their paths through each other, and what zoneout keeps of it for the old ones.
    TT_INLINE void arriving(int64_t j, V* dn, V* kept) const {
      for (int i = 0; i < C::states; ++i) {
        dn[i] = i == 0 ? load<V>(loop.units(0, b, j)) : loop.carried(mine, i, b, j);
        loop.add_loss(at, i, b, j, dn[i]);
      }
      loop.zone(at, b, j, dn, kept);
    }
    TT_INLINE V dh(int64_t j) const {
      V dn[C::states], kept[C::states] = {};
      arriving(j, dn, kept);
      return dn[0];
    }
    TT_INLINE void set_states(int64_t j, const V* dn, const V* ds, const V* kept) const {
      loop.leave(mine, at, b, j, dn, ds, kept);
    }
    TT_INLINE void add_weight(int64_t j, int k, V value) const { loop.unit_gradients.add(at.s, b, j, k, value); }
    TT_INLINE void set_delta(int64_t j, V* dz, V* dx, V* dr) const {
      for (int g = 0; g < G; ++g) dz[g] = this->keep(j, dz[g]), dx[g] = this->keep(j, dx[g]), dr[g] = this->keep(j, dr[g]);
      loop.put_deltas(at, b, j, dz, dx, dr);
    }
  };

  TT_PHASE void apply_rows(const Mine& mine, const Moment& at) {
    const Range own_rows = plan.whole_rows(p.B, mine.part);
    for (int64_t b = own_rows.begin; b < own_rows.end; ++b) {
      if (mine.rules[b] & inactive) {
        for (int64_t j = 0; j < plan.unit_vectors; ++j) {
          V dn[C::states], none[G] = {};
          for (int i = 0; i < C::states; ++i) dn[i] = i == 0 ? load<V>(units(0, b, j)) : carried(mine, i, b, j);
          rest(at, b, j, dn, 0);
          put_deltas(at, b, j, none, none, none);
        }
        continue;
      }
      const S* c = mine.rules[b] & fresh ? nullptr : at.before[C::states - 1] + b * p.H;
      Row row{{p.H, saved_at(at, b, 0), c, unit_packed, notes + mine.part * Row::notes_size(p.H)}, *this, mine, at, b};
      C::backward_row(row);
    }
  }

  const S* saved_at(const Moment& at, int64_t b, int64_t j) const {
    return at.saved + saved_place<C>(b, j, p.B, plan.unit_vectors) * C::saved * L;
  }

  template <int n>
  TT_INLINE void load_saved(const Mine& mine, const Moment& at, int64_t b, int64_t j, V (&a)[n], V (&old)[C::states]) const {
    for (int i = 0; i < C::saved; ++i) a[i] = load<V>(saved_at(at, b, j) + i * L);
    for (int i = first_state; i < C::states; ++i)
      old[i] = mine.rules[b] & fresh ? V{} : load_some<V>(at.before[i] + b * p.H + j * L, p.H - j * L);
    prefetch_next(at, b, j);
  }

  // The rows that the next step reads are too far apart for the hardware prefetcher.
  TT_INLINE void prefetch_next(const Moment& at, int64_t b, int64_t j) const {
    for (int i = 0; i < C::saved; ++i)
      __builtin_prefetch(at.next_saved + (saved_place<C>(b, j, p.B, plan.unit_vectors) * C::saved + i) * L, 0, 2);
    __builtin_prefetch(at.next_cell + b * p.H + j * L, 0, 2);
    if (at.next_loss) __builtin_prefetch(at.next_loss + b * p.d_output.batch + j * L, 0, 2);
  }

  // A step that is not taken hands on what it receives, from state `first` on.
  TT_INLINE void rest(const Moment& at, int64_t b, int64_t j, const V* dn, int first, int end = C::states) {
    for (int i = first; i < end; ++i) store(units(i, b, j), dn[i]), put_state(at, i, b, j, V{});
  }

  // Zoneout: what the new states receive, and what goes past them to the old ones. The state after is then another than the one
  // that the cell's own paths start from, and all that it receives is what came.
  TT_INLINE void zone(const Moment& at, int64_t b, int64_t j, V* dn, V* kept) const {
    for (int i = first_state; i < C::states; ++i) {
      if (!zoned[i]) continue;
      put_state(at, i, b, j, dn[i]);
      kept[i] = zoneout.part(i, at.t, b, j) * dn[i];
      dn[i] -= kept[i];
    }
  }

  // What the states after received in all, and what the states before will from this step, but for its product.
  TT_INLINE void leave(const Mine& mine, const Moment& at, int64_t b, int64_t j, const V* dn, const V* ds, const V* kept) const {
    const bool stops = mine.rules[b] & (fresh | cut);
    for (int i = first_state; i < C::states; ++i) {
      if (!zoned[i]) put_state(at, i, b, j, dn[i]);
      // Lanes past H may hold NaN, from an infinite input times their zero weights, and must not reach a sum over lanes.
      store(units(i, b, j), stops ? V{} : keep_some<S>(zoned[i] ? ds[i] + kept[i] : ds[i], p.H - j * L));
    }
  }

  TT_INLINE void put_state(const Moment& at, int i, int64_t b, int64_t j, V total) const {
    if (!d_states[i]) return;
    const int64_t width = history.width(i);
    S* const to = d_states[i] + (at.state_row + b) * width + j * L;
    if (streams[i]) stream(to, total);
    else store_some(to, total, width - j * L);
  }

  TT_INLINE void add_loss(const Moment& at, int i, int64_t b, int64_t j, V& dn) const {
    if (i == 0 && p.d_output.data && !asks_flow())
      dn += load_some<V>(p.d_output.data + at.t * p.d_output.time + b * p.d_output.batch + j * L, p.P - j * L);
    if (i == C::states - 1 && p.d_cell) dn += load_some<V>(p.d_cell + (at.t * p.B + b) * p.H + j * L, p.H - j * L);
  }

  // dz: gradient of the pre-activations, and of what the products with x and h gave.
  TT_INLINE void put_deltas(const Moment& at, int64_t b, int64_t j, const V* dz, const V* dx, const V* dr) const {
    if (p.d_gates)
      for (int g = 0; g < G; ++g) store_some(p.d_gates + ((at.t * p.B + b) * G + g) * p.H + j * L, dz[g], p.H - j * L);
    for (int g = 0; g < G; ++g) inputs.delta.put(at.delta_row + b, (j * G + g) * L, dx[g]);
    if constexpr (C::split)
      for (int g = 0; g < R; ++g) recurrent.delta.put(at.delta_row + b, (j * R + g) * L, dr[g]);
  }

  TT_PHASE void input_gradient(const Mine& mine, int64_t begin, int64_t end) {
    const Range own = share((end - begin) * p.B, host.threads, mine.part, Product::rows);
    for (int64_t r = own.begin; r < own.end; ++r) {
      const int64_t s = begin + r / p.B, b = r % p.B;
      mine.targets[r] = p.d_input.data + steps.time(s) * p.d_input.time + b * p.d_input.batch;
    }
    const Panels panels{0, Product::panels(ceil_div(p.I, L))};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += Product::vectors) {
        // Zero delta times an infinite weight is no zero.
        const bool idle = steps.ruled() && steps.rule(begin + r / p.B, r % p.B) & inactive;
        for (int v = 0; v < Product::vectors && (q + v) * L < p.I; ++v) {
          S* target = mine.targets[r] + (q + v) * L;
          const int64_t n = p.I - (q + v) * L;
          const V part = idle ? V{} : sums[v];
          store_some(target, p.add_to_input ? part + load_some<V>(target, n) : part, n);
        }
      }
    };
    // The places wrap around: rows before and after that.
    const int64_t first = delta_row(begin), wrap = delta_rows - first;
    const Range parts[2] = {{own.begin, own.end < wrap ? own.end : wrap}, {own.begin > wrap ? own.begin : wrap, own.end}};
    for (int i = 0; i < 2; ++i) {
      const auto rows = inputs.delta.rows(i ? -wrap : first, parts[i], mine.rows);
      chunk_engine.template product<Product>(inputs.row_size(), rows, parts[i], weight_packed, panels, none, sink<S>(put),
                                             mine.unit->chunks());
    }
  }

  // Some panels at a time, packed just before they are used.
  TT_PHASE void weight_gradients(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t height = (end - begin) * p.B, size = chunk_engine.packed_size(height, Product::vectors);
    const auto add = [&](const Side& side, Range some) {
      side.add_gradient(chunk_engine, height, some, mine.panels, mine.rows, room_rows, mine.unit->chunks());
    };
    for_sides([&](const Side& side) {
      if (!side.has_own_delta()) return;
      const Range own = share(Product::panels(side.order.vectors()), host.threads, mine.part);
      for (Range some = {own.begin, own.begin}; some.begin < own.end; some.begin = some.end) {
        for (; some.end < own.end && some.end < some.begin + ChunkEngine::panels_at_once; ++some.end)
          side.pack(chunk_engine, delta_row(begin), height, some.end, mine.panels + (some.end - some.begin) * size);
        add(side, some);
        if (!C::split && &side == &inputs) add(recurrent, some);
      }
    });
    if constexpr (values > 0) unit_gradients.close_chunk(begin, end, host.threads, mine.part);
  }

  TT_PHASE void flow_norms(const Mine& mine, int64_t begin, int64_t end) const {
    const Range own = share(end - begin, host.threads, mine.part);
    for (int64_t i = own.begin; i < own.end; ++i) flow.find_norms(mine.part, steps.time(begin + i), d_states[0] + i * p.B * p.P);
  }

  TT_PHASE void step_norms(const Mine& mine, int64_t begin, int64_t end) {
    const Range own = share(end - begin, host.threads, mine.part);
    StepNorms<S> norm(norms + mine.part * norms_room().total(), norms_room());
    for (int64_t s = begin + own.begin; s < begin + own.end; ++s) {
      const int64_t t = steps.time(s);
      const Norms x = side_norms(mine, norm, inputs, s, begin), h = side_norms(mine, norm, recurrent, s, begin);
      p.norms[weight_ih][t] = x.weight, p.norms[bias_ih][t] = x.bias;
      p.norms[weight_hh][t] = h.weight, p.norms[bias_hh][t] = h.bias;
      if constexpr (two_products) {
        const Norms m = side_norms(mine, norm, second, s, begin);
        if (C::projects) p.norms[weight_hr][t] = m.weight;
        else p.norms[weight_hh][t] = joint(h.weight, m.weight), p.norms[bias_hh][t] = joint(h.bias, m.bias);
      }
      if constexpr (values > 0)
        unit_gradients.norms(norm, s, mine.rows, [&](int parameter, double value) { p.norms[parameter][t] = value; });
    }
  }

  struct Norms {
    double weight, bias;
  };

  static double joint(double a, double b) {
    const double largest = a > b ? a : b, part = largest > 0 ? (a > b ? b : a) / largest : 0;
    return largest * __builtin_sqrt(1 + part * part);
  }

  // What step s adds to the gradients of one product.
  Norms side_norms(const Mine& mine, StepNorms<S>& norm, const Side& side, int64_t s, int64_t begin) const {
    int64_t count = 0;
    for (int64_t b = 0; b < p.B; ++b) {
      const int rule = steps.ruled() ? steps.rule(s, b) : 0;
      if (rule & inactive) continue;
      mine.rows[count] = side.delta.row(delta_row(s) + b);
      mine.other[count++] = &side == &inputs   ? x(s, b)
                            : &side == &second ? middle + ((s - begin) * p.B + b) * p.H
                            : rule & fresh     ? zeros
                                               : history.state(0, s) + b * p.P;
    }
    const int64_t above = &side == &second ? R * p.H : 0;  // rows of weight_hh
    const auto dropped = [&](int64_t g) -> const uint8_t* {
      const int64_t row = side.order.row(g / L, g % L);
      return p.dropped && &side != &inputs && !(C::projects && &side == &second) && row >= 0 ? p.dropped + (above + row) * p.P
                                                                                             : nullptr;
    };
    return {norm.of_weight(mine.rows, side.row_size(), mine.other, side.features, count, dropped),
            norm.of_bias(mine.rows, side.row_size(), count)};
  }

  // The same product once more carries the first step's delta to the initial state.
  TT_PHASE void initial_gradient(const Mine& mine) {
    if (steps.ruled()) find_rules(mine, -1);
    for_carried(mine, 0, {}, [&](int64_t b, int64_t q, V h) {
      store_some(p.d_initial[0] + b * p.P + q * L, load<V>(units(0, b, q)) + h, p.P - q * L);
    });
    for (int i = 1; i < C::states; ++i)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        for (int64_t j = mine.j.begin; j < mine.j.end; ++j)
          store_some(p.d_initial[i] + b * p.H + j * L, load<V>(units(i, b, j)), p.H - j * L);
  }

  TT_PHASE void unpack_weights(const Mine& mine) {
    const auto unpack = [&](const Side& side, S* d_weight, S* d_bias) {
      side.unpack(host.threads, mine.part, d_weight, C::bias_inside ? nullptr : d_bias);
    };
    unpack(inputs, p.d_weights[weight_ih], p.d_weights[bias_ih]);
    unpack(recurrent, p.d_weights[weight_hh], p.d_weights[bias_hh]);
    if constexpr (two_products)
      unpack(second, second_part<C>(p.d_weights, p, weight_hh), second_part<C>(p.d_weights, p, bias_hh));
    if constexpr (values > 0)
      if (mine.part == 0) unit_gradients.unpack(p.d_weights);
  }

  const Backward<S>& p;
  const Host& host;
  Team team;
  Engine engine;
  ChunkEngine chunk_engine;
  Plan plan;
  Steps<S> steps;
  History<S> history;
  Zoneout<S> zoneout;
  const bool zoned[max_states] = {zoneout.any(0), zoneout.any(1)};
  const bool rescales = p.clip > 0 || asks_flow();
  // Whether two parts exchange their halves of a step's sums instead of its delta.
  const bool exchanges = Engine::overlaps && C::phases == Phases::one && plan.unit_parts == 2 && !rescales;
  Forward<S> forward;      // the same problem, for `again`
  Again* again = nullptr;  // where states or saved values were not kept
  int64_t chunk_rows, delta_rows, column_size, room_rows;
  ChunkWeight* weight_packed;  // the weights, packed for sums over gates
  Weight *recurrent_packed, *second_packed;
  S* carry[max_states];  // (B, features of h), (B, units): elementwise part of what flows back, and between steps at rest all of
                         // it
  Side inputs, recurrent, second;
  const S* unit_packed;  // (units, values, lanes)
  TT_ISA::UnitGradients<C, S> unit_gradients;
  CarriedNorms<S, C::states> carried_norms;
  Flow<S> flow;
  S* d_states[max_states];  // (rows, B, P), (rows, B, H): of all timesteps, or for the flow's norms of the chunk; or null
  ChunkWeight* panels;      // of delta, some a thread
  S* halves;                // see half_sums
  int64_t halves_size;
  S* zeros;   // the state before an episode
  S* middle;  // (chunk rows, H): what the second product multiplied with
  S* notes;   // one row a thread
  const S** rows;
  Mine* all_parts;
  uint8_t* rules;
  S* scales;
  double* norms = nullptr;
  int64_t panels_size;
  bool streams[max_states] = {};  // whether d_states bypass the cache
};

}  // namespace throughtime::TT_ISA
