// The time loop, backward. Chunk by chunk from the end: the steps give the chunk's delta (the gradient of the pre-activations);
// while it is in cache, products take it into dx, dW_ih, dW_hh. delta lies in rows; where a product sums over these, it is packed
// panel by panel. Weight gradients are summed in two levels: each chunk from zero, chunks in float64. What the tape does not
// hold, states or saved values, the forward loop computes again on the way.
#pragma once

#include "forward.hpp"
#include "norms.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class BackwardLoop {
  using V = Vec<S>;
  using Again = ForwardLoop<C, S, Tiles>;
  using Engine = typename Tiles::Engine;
  using Product = typename Tiles::Product;
  using Rows = typename Engine::Rows;
  using Weight = typename Engine::Weight;
  static constexpr int L = lanes<S>, G = C::gates, R = C::recurrent, back = Tiles::Backward::vectors;
  static constexpr int values = unit_values<C>();
  static constexpr bool two_products = C::phases == Phases::two_products, whole_rows = C::phases == Phases::rows;
  static constexpr int first_state = C::projects ? 1 : 0;  // of those that the cell's equations give
  static constexpr const S* none = nullptr;  // no bias

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
        plan(make_plan<C, Tiles>(p, host, engine)),
        steps{p, p.truncate},
        history{p, p.B * plan.unit_vectors * C::saved * L},
        zoneout{p},
        forward{p, {}} {
    chunk_rows = plan.chunk * p.B;
    delta_rows = chunk_rows + p.B;
    column_size = Engine::columns_padded(chunk_rows);
    panels = scratch<Weight>(host, host.threads * engine.packed_size(column_size, Product::vectors));
    inputs.prepare(*this, {G, p.H, L}, p.I);
    recurrent.prepare(*this, {R, p.H, L}, p.P, C::split ? nullptr : &inputs);
    if (two_products) second.prepare(*this, {1, p.P, L}, p.H);
    const int64_t input_vectors = Product::panels(ceil_div(p.I, L)) * Product::vectors;
    weight_packed = scratch<Weight>(host, engine.packed_size(inputs.row_size(), input_vectors));
    recurrent_packed = scratch<Weight>(host, engine.packed_size(recurrent.row_size(), back_panels(plan.hidden_vectors) * back));
    for (int i = 0; i < C::states; ++i) carry[i] = scratch<S>(host, p.B * vectors(i) * L);
    zeros = scratch<S>(host, p.P);
    room_rows = column_size;  // a left operand of so many rows, and the rows to be transposed
    rows = scratch<const S*>(host, 3 * host.threads * room_rows);
    rules = scratch<uint8_t>(host, 2 * host.threads * p.B);
    scales = scratch<S>(host, host.threads * p.B);
    for (int i = 0; p.clip > 0 && i < C::states; ++i) sizes[i] = scratch<Size>(host, p.B * vectors(i));
    if (asks_norms()) norms = scratch<double>(host, host.threads * norms_room().total());
    __builtin_memset(zeros, 0, size_t(p.P) * sizeof(S));
    __builtin_memset(rules, 0, size_t(2 * host.threads * p.B));
    if constexpr (two_products) {
      second_packed = scratch<Weight>(host, engine.packed_size(second.row_size(), back_panels(plan.unit_vectors) * back));
      middle = scratch<S>(host, chunk_rows * p.H);
    }
    if constexpr (whole_rows) notes = scratch<S>(host, host.threads * notes_size());
    if constexpr (values > 0) own.prepare(*this);
    if (p.every || (C::saved && !p.saved)) prepare_again();
  }

  static int64_t back_panels(int64_t vectors) { return Tiles::Backward::panels(vectors); }
  int64_t vectors(int state) const { return state == 0 ? plan.hidden_vectors : plan.unit_vectors; }

  void prepare_again() {
    // At least a chunk, for products of few rows are slow.
    if (p.every) history.apart = ceil_div(plan.chunk, p.every) * p.every;
    history.window_rows = history.apart;
    for (int i = 0; p.every && i < C::states; ++i)
      history.window[i] = scratch<S>(host, history.apart * p.B * history.width(i));
    history.saved_rows = p.every ? history.apart : plan.chunk;
    history.saved_window = scratch<S>(host, history.saved_rows * history.saved_size);
    History<S> own = history;
    own.again = true;
    again = new (scratch<Again>(host, 1)) Again(forward, host, team, own);
  }

  // One product of a step, with x, with h or the second one: what its weight's gradient is made of. Where a cell is not split, x
  // and h share their delta. A step's delta must outlive its chunk by one step, so steps take turns in chunk + 1 places.
  struct Side {
    Interleaved order;
    int64_t features;
    Operand<S, Engine> delta;          // (places, B, row_size): gradient of what the product gives
    typename Engine::Columns columns;  // (features, column_size): the chunk's x, h or m, transposed
    double* sums;                      // (features, row_size): weight gradient so far, transposed, gates interleaved
    double* bias;                      // (row_size): its gradient so far

    void prepare(const BackwardLoop& loop, Interleaved rows, int64_t of_features, const Side* shared = nullptr) {
      const Host& host = loop.host;
      order = rows, features = of_features;
      if (shared) {
        delta = shared->delta, bias = shared->bias;
      } else {
        delta = {loop.engine, host, loop.delta_rows, row_size(), loop.asks_norms()};
        bias = scratch<double>(host, row_size());
      }
      const int64_t size = Engine::splits ? loop.engine.room_size(features, loop.column_size) : features * loop.column_size;
      columns = loop.engine.columns(scratch<Weight>(host, size), features, loop.column_size);
      sums = scratch<double>(host, features * row_size());
    }
    int64_t row_size() const { return order.vectors() * L; }
  };

  // The unit weights, and their gradients: of the chunk, and of all so far. Where norms are asked for, each step has a place.
  struct Own {
    const S* packed;  // (units, values, lanes)
    S* recent;        // (places, B, values, units, lanes)
    double* sums;     // (values, units, lanes)
    int64_t places, units, size;

    void prepare(const BackwardLoop& loop) {
      packed = pack_unit_weights<C>(loop.p, loop.host, loop.inputs.order);
      units = loop.plan.unit_vectors * L;
      size = values * units;
      places = loop.asks_norms() ? loop.plan.chunk : 1;
      recent = scratch<S>(loop.host, places * loop.p.B * size);
      sums = scratch<double>(loop.host, size);
    }
    S* at(int64_t s, int64_t B, int64_t b) const { return recent + (s % places * B + b) * size; }
  };

  struct Mine {
    int thread;
    typename Engine::Unit& unit;
    Range b, j, q;            // sequences, vectors of units and of features of h
    const S **rows, **other;  // room for a row of the chunk each
    S** targets;
    Weight* panel;           // of the chunk's delta
    uint8_t *rules, *later;  // of the step, and of the step after
    S* scales;               // what clipping makes of each sequence's carried gradient
  };

  // A norm whose square may leave the range: largest * sqrt(squares).
  struct Size {
    double largest, squares;
  };

  // Where one step finds its rows.
  struct Moment {
    int64_t s, t;
    const S* before[C::states];  // (B, H)
    const S* after[C::states];
    const S* saved;
    int64_t delta_row;  // among all places
    int64_t row;        // among the chunk's
  };

  Moment moment(int64_t s, int64_t begin) const {
    Moment at{s, steps.time(s), {}, {}, history.saved(steps, s), delta_row(s), (s - begin) * p.B};
    for (int i = 0; i < C::states; ++i) at.before[i] = history.state(i, s), at.after[i] = history.state(i, s + 1);
    return at;
  }

  int64_t delta_row(int64_t s) const { return s % (plan.chunk + 1) * p.B; }

  bool asks_norms() const { return p.norms[0] != nullptr; }
  typename StepNorms<S>::Room norms_room() const {
    return {p.B, inputs.row_size(), p.I, p.H > p.P ? p.H : p.P};
  }

  void work(int thread) {
    const FlushSubnormals flush;
    typename Engine::Unit unit;
    const int64_t panel_size = engine.packed_size(column_size, Product::vectors);
    Mine mine{thread,  unit,    plan.rows(p.B, thread),       plan.units(thread),       plan.hidden(thread), rows + 3 * thread * room_rows,
              nullptr, nullptr, panels + thread * panel_size, rules + 2 * thread * p.B, rules + (2 * thread + 1) * p.B,
              scales + thread * p.B};
    mine.other = mine.rows + room_rows;
    mine.targets = const_cast<S**>(mine.other + room_rows);
    prepare(mine);
    if (!team.wait(thread)) return;
    for (int64_t end = p.T; end > 0;) {
      const int64_t first = history.window_before(end);
      if (p.every && !(again->advance(again->mine(thread, unit), first, end) && team.wait(thread))) return;
      for (; end > first; end = end > first + plan.chunk ? end - plan.chunk : first)
        if (!chunk(mine, end > first + plan.chunk ? end - plan.chunk : first, end)) return;
    }
    initial_gradient(mine);
    unpack_weights(mine);
  }

  // False when the call is to stop.
  bool chunk(const Mine& mine, int64_t begin, int64_t end) {
    if (team.interrupted(mine.thread)) return false;
    if (again && !p.every && !again->save_again(again->mine(mine.thread, mine.unit), begin, end)) return false;
    if constexpr (C::phases != Phases::one)
      if (again && !team.wait(mine.thread)) return false;
    transpose_operands(mine, begin, end);
    for (int64_t s = end - 1; s >= begin; --s) {
      if (!step(mine, moment(s, begin))) return false;
      if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
    }
    if (!team.wait(mine.thread)) return false;
    if constexpr (two_products) {
      transpose_middle(mine, begin, end);
      if (!team.wait(mine.thread)) return false;
    }
    input_gradient(mine, begin, end);
    if (asks_norms()) {
      step_norms(mine, begin, end);
      if (values > 0 && !team.wait(mine.thread)) return false;
    }
    weight_gradients(mine, begin, end);
    return team.wait(mine.thread);
  }

  void prepare(const Mine& mine) {
    const int t = mine.thread, n = host.threads;
    if (again) again->pack(t);
    const Range input_panels = share(Product::panels(ceil_div(p.I, L)), n, t);
    engine.template pack_columns<Product::vectors>(p.weights[weight_ih], p.I, inputs.order, input_panels, weight_packed);
    const Range recurrent_panels = share(back_panels(plan.hidden_vectors), n, t);
    engine.template pack_columns<back>(p.weights[weight_hh], p.P, recurrent.order, recurrent_panels, recurrent_packed);
    if constexpr (two_products) {
      const Range second_panels = share(back_panels(plan.unit_vectors), n, t);
      engine.template pack_columns<back>(second_part<C>(p.weights, p, weight_hh), p.H, second.order, second_panels, second_packed);
    }
    for_sides([&](const Side& side) {
      clear(side.sums, share(side.features * side.row_size(), n, t));
      clear(side.bias, share(side.row_size(), n, t));
    });
    if constexpr (values > 0) {
      clear(own.sums, share(own.size, n, t));
      clear(own.recent, share(own.places * p.B * own.size, n, t));
    }
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) mine.scales[b] = 1;
    for (int i = 0; i < C::states; ++i)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b) {
        const Range own = i == 0 ? mine.q : mine.j;
        const int64_t width = history.width(i);
        for (int64_t j = own.begin; j < own.end; ++j)
          store(units(i, b, j), load_some<V>(p.d_final[i] + b * width + j * L, width - j * L));
      }
  }

  template <class Take>
  void for_sides(const Take& take) const {
    take(inputs);
    take(recurrent);
    if constexpr (two_products) take(second);
  }

  template <class T>
  static void clear(T* data, Range range) {
    __builtin_memset(data + range.begin, 0, size_t(range.end - range.begin) * sizeof(T));
  }

  // What is carried to units j of a state.
  S* units(int state, int64_t b, int64_t j) const { return carry[state] + (b * vectors(state) + j) * L; }

  // The chunk's x and h, transposed; rows that take no part are zero whatever they hold (padding may be NaN).
  void transpose_operands(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * p.B;
    const Range own = share(Engine::columns_padded(count), host.threads, mine.thread, L);
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
    transpose_into(inputs, mine.rows, own);
    transpose_into(recurrent, mine.other, own);
  }

  void transpose_into(const Side& side, const S* const* rows, Range own) const {
    for (int64_t r = own.begin; r < own.end; r += L)
      transpose_rows(rows + r, own.end - r, side.features, [&side, r](int64_t k, V value) { side.columns.put(k, r, value); });
  }

  // The second product's operand, which the steps have made.
  void transpose_middle(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * p.B;
    const Range own = share(Engine::columns_padded(count), host.threads, mine.thread, L);
    for (int64_t r = own.begin; r < own.end; ++r) {
      const bool idle = r >= count || (steps.ruled() && steps.rule(begin + r / p.B, r % p.B) & inactive);
      mine.rows[r] = idle ? nullptr : middle + r * p.H;
    }
    transpose_into(second, mine.rows, own);
  }

  const S* x(int64_t s, int64_t b) const { return p.x.data + steps.time(s) * p.x.time + b * p.x.batch; }

  bool step(const Mine& mine, const Moment& at) {
    if (steps.ruled()) find_rules(mine, at.s);
    if constexpr (C::phases == Phases::one) {
      return receive(mine, at, [&](int64_t b, int64_t j, V dh) { apply(mine, at, b, j, dh); });
    } else if constexpr (two_products) {
      if (!receive(mine, at, [&](int64_t b, int64_t q, V dh) { arrive(mine, at, b, q, dh); })) return false;
      if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
      second_product(mine, at);
    } else {
      if (!receive(mine, at, [&](int64_t b, int64_t j, V dh) { store(units(0, b, j), dh); })) return false;
      if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
      apply_rows(mine, at);
    }
    return true;
  }

  // put(b, q, dh): the gradient that h receives from the step after. False when the call is to stop.
  template <class Put>
  bool receive(const Mine& mine, const Moment& at, const Put& put) {
    if (!(p.clip > 0)) {
      for_carried(mine, at.s + 1, [&](int64_t b, int64_t q, V h) { put(b, q, load<V>(units(0, b, q)) + h); });
      return true;
    }
    for_carried(mine, at.s + 1, [&](int64_t b, int64_t q, V h) {
      store(units(0, b, q), load<V>(units(0, b, q)) + h);
      gather(0, b, q);
    });
    for (int i = 1; i < C::states; ++i)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        for (int64_t j = mine.j.begin; j < mine.j.end; ++j) gather(i, b, j);
    if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) find_scale(mine, at, b);
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
      for (int64_t q = mine.q.begin; q < mine.q.end; ++q) put(b, q, load<V>(units(0, b, q)) * mine.scales[b]);
    return true;
  }

  void find_rules(const Mine& mine, int64_t s) {
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) {
      mine.rules[b] = uint8_t(s >= 0 ? steps.rule(s, b) : 0);
      mine.later[b] = uint8_t(s + 1 < p.T ? steps.rule(s + 1, b) : 0);
    }
  }

  // put(b, j, h): what step `later` sends back to h through its recurrent product; zero where no gradient crosses, whatever the
  // weights hold.
  template <class Put>
  void for_carried(const Mine& mine, int64_t later, const Put& put) {
    const int64_t K = later < p.T ? recurrent.row_size() : 0;
    const Rows rows = recurrent.delta.rows(delta_row(later), mine.b, mine.rows);
    const Panels panels = panels_of(mine.q, later);
    const auto tile = [&](int64_t first, int count, int64_t j, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && j + v < mine.q.end; ++v) put(b, j + v, mine.later[b] ? V{} : sums[v]);
    };
    engine.template product<typename Tiles::Backward>(K, rows, mine.b, recurrent_packed, panels, none, sink<S>(tile), mine.unit);
  }

  static Panels panels_of(Range j, int64_t s) { return {j.begin / back, ceil_div(j.end, back), s % 2 != 0}; }

  // With clipping: the size of what is carried.
  void gather(int i, int64_t b, int64_t j) {
    Size& size = sizes[i][b * vectors(i) + j];
    size = {0, 0};
    for (int lane = 0; lane < L; ++lane) {
      const double value = __builtin_fabs(double(units(i, b, j)[lane]));
      size.largest = value > size.largest ? value : size.largest;
    }
    for (int lane = 0; lane < L && size.largest > 0; ++lane) {
      const double part = double(units(i, b, j)[lane]) / size.largest;
      size.squares += part * part;
    }
  }

  double carried_norm(int64_t b) const {
    Size all{0, 0};
    const auto for_parts = [&](const auto& take) {
      for (int i = 0; i < C::states; ++i)
        for (int64_t j = 0; j < vectors(i); ++j) take(sizes[i][b * vectors(i) + j]);
    };
    for_parts([&](const Size& size) { all.largest = size.largest > all.largest ? size.largest : all.largest; });
    for_parts([&](const Size& size) {
      const double part = all.largest > 0 ? size.largest / all.largest : 0;
      all.squares += size.squares * part * part;
    });
    return all.largest * __builtin_sqrt(all.squares);
  }

  // Down to the norm `clip` where it is larger. The last step's carry is the final state's gradient, which is the loss's own and
  // stays.
  void find_scale(const Mine& mine, const Moment& at, int64_t b) const {
    const double norm = carried_norm(b);
    const bool clips = norm > p.clip && !(mine.rules[b] & inactive) && !steps.last(at.s, b);
    mine.scales[b] = clips ? S(p.clip / norm) : S(1);
    if (mine.j.begin == 0 && mine.j.end > 0) p.clipped[at.t * p.B + b] = clips;
  }

  TT_INLINE V carried(const Mine& mine, int i, int64_t b, int64_t j) const {
    const V value = load<V>(units(i, b, j));
    return p.clip > 0 ? value * mine.scales[b] : value;
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
        C::backward(a, old, next, load_units<values>(own.packed, j).value, dn, ds, dx, dr, dw);
        for (int k = 0; k < values; ++k) add_weight(at, b, j, k, dw[k]);
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
        if (zoned) kept = zoneout.part(0, at.t, b, q) * dh, d_second = dh - kept;
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

  void second_product(const Mine& mine, const Moment& at) {
    const auto put = [&](int64_t first, int count, int64_t j, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && j + v < mine.j.end; ++v) apply_second(mine, at, b, j + v, sums[v]);
    };
    const Rows rows = second.delta.rows(at.delta_row, mine.b, mine.rows);
    engine.template product<typename Tiles::Backward>(second.row_size(), rows, mine.b, second_packed, panels_of(mine.j, at.s),
                                                      none, sink<S>(put), mine.unit);
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

    // All that the states after receive, but for their paths through each other.
    TT_INLINE void arriving(int64_t j, V* dn, V* kept) const {
      for (int i = 0; i < C::states; ++i) {
        dn[i] = i == 0 ? load<V>(loop.units(0, b, j)) : loop.carried(mine, i, b, j);
        loop.add_loss(at, i, b, j, dn[i]);
      }
      loop.zone(at, b, j, dn, kept);
    }
    TT_INLINE V dn(int i, int64_t j) const {
      V all[C::states], kept[C::states] = {};
      arriving(j, all, kept);
      return all[i];
    }
    TT_INLINE void set_states(int64_t j, const V* dn, const V* ds) const {
      V all[C::states], kept[C::states] = {};
      arriving(j, all, kept);
      loop.leave(mine, at, b, j, dn, ds, kept);
    }
    TT_INLINE void add_weight(int64_t j, int k, V value) const { loop.add_weight(at, b, j, k, value); }
    TT_INLINE void set_delta(int64_t j, V* dz, V* dx, V* dr) const {
      for (int g = 0; g < G; ++g) dz[g] = this->keep(j, dz[g]), dx[g] = this->keep(j, dx[g]), dr[g] = this->keep(j, dr[g]);
      loop.put_deltas(at, b, j, dz, dx, dr);
    }
  };

  int64_t notes_size() const {
    if constexpr (whole_rows) return plan.unit_vectors * C::notes * L;
    else return 0;
  }

  void apply_rows(const Mine& mine, const Moment& at) {
    const Range own_rows = plan.whole_rows(p.B, mine.thread);
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
      Row row{{p.H, saved_at(at, b, 0), c, own.packed, notes + mine.thread * notes_size()}, *this, mine, at, b};
      C::backward_row(row);
    }
  }

  const S* saved_at(const Moment& at, int64_t b, int64_t j) const {
    return at.saved + (b * plan.unit_vectors + j) * C::saved * L;
  }

  template <int n>
  TT_INLINE void load_saved(const Mine& mine, const Moment& at, int64_t b, int64_t j, V (&a)[n], V (&old)[C::states]) const {
    for (int i = 0; i < C::saved; ++i) a[i] = load<V>(saved_at(at, b, j) + i * L);
    for (int i = first_state; i < C::states; ++i)
      old[i] = mine.rules[b] & fresh ? V{} : load_some<V>(at.before[i] + b * p.H + j * L, p.H - j * L);
  }

  // A step that is not taken hands on what it receives, from state `first` on.
  TT_INLINE void rest(const Moment& at, int64_t b, int64_t j, const V* dn, int first, int end = C::states) {
    for (int i = first; i < end; ++i) store(units(i, b, j), dn[i]), put_state(at, i, b, j, V{});
  }

  // Zoneout: what the new states receive, and what goes past them to the old ones. Totals are those of the states after.
  TT_INLINE void zone(const Moment& at, int64_t b, int64_t j, V* dn, V* kept) const {
    if (!zoned) return;
    for (int i = first_state; i < C::states; ++i) {
      put_state(at, i, b, j, dn[i]);
      kept[i] = zoneout.part(i, at.t, b, j) * dn[i];
      dn[i] -= kept[i];
    }
  }

  // What the states after received in all, and what the states before will from this step, but for its product.
  TT_INLINE void leave(const Mine& mine, const Moment& at, int64_t b, int64_t j, const V* dn, const V* ds, const V* kept) const {
    const bool stops = mine.rules[b] & (fresh | cut);
    for (int i = first_state; i < C::states; ++i) {
      if (!zoned) put_state(at, i, b, j, dn[i]);
      // Lanes past H may hold NaN, from an infinite input times their zero weights, and must not reach a sum over lanes.
      store(units(i, b, j), stops ? V{} : keep_some<S>(zoned ? ds[i] + kept[i] : ds[i], p.H - j * L));
    }
  }

  TT_INLINE void put_state(const Moment& at, int i, int64_t b, int64_t j, V total) const {
    const int64_t width = history.width(i);
    if (p.d_states[i]) store_some(p.d_states[i] + (at.t * p.B + b) * width + j * L, total, width - j * L);
  }

  TT_INLINE void add_weight(const Moment& at, int64_t b, int64_t j, int k, V value) const {
    S* into = own.at(at.s, p.B, b) + k * own.units + j * L;
    store(into, load<V>(into) + value);
  }

  TT_INLINE void add_loss(const Moment& at, int i, int64_t b, int64_t j, V& dn) const {
    if (i == 0 && p.d_output.data)
      dn += load_some<V>(p.d_output.data + at.t * p.d_output.time + b * p.d_output.batch + j * L, p.P - j * L);
    if (i == C::states - 1 && p.d_cell) dn += load_some<V>(p.d_cell + (at.t * p.B + b) * p.H + j * L, p.H - j * L);
  }

  // dz: gradient of the pre-activations, and of what the products with x and h gave.
  TT_INLINE void put_deltas(const Moment& at, int64_t b, int64_t j, const V* dz, const V* dx, const V* dr) const {
    if (p.d_gates)
      for (int g = 0; g < G; ++g)
        store_some(p.d_gates + ((at.t * p.B + b) * G + g) * p.H + j * L, dz[g], p.H - j * L);
    for (int g = 0; g < G; ++g) inputs.delta.put(at.delta_row + b, (j * G + g) * L, dx[g]);
    if constexpr (C::split)
      for (int g = 0; g < R; ++g) recurrent.delta.put(at.delta_row + b, (j * R + g) * L, dr[g]);
  }

  void input_gradient(const Mine& mine, int64_t begin, int64_t end) {
    const Range own = share((end - begin) * p.B, host.threads, mine.thread, Product::rows);
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
      const Rows rows = inputs.delta.rows(i ? -wrap : first, parts[i], mine.rows);
      engine.template product<Product>(inputs.row_size(), rows, parts[i], weight_packed, panels, none, sink<S>(put), mine.unit);
    }
  }

  // Panel by panel, packed just before it is used. The bias's gradient is the sum of delta's rows.
  void weight_gradients(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t height = (end - begin) * p.B;
    for_sides([&](const Side& side) {
      if (!C::split && &side == &recurrent) return;
      const Range own = share(Product::panels(side.order.vectors()), host.threads, mine.thread);
      for (int64_t panel = own.begin; panel < own.end; ++panel) {
        pack_delta(mine, side, begin, height, panel);
        weight_gradient(mine, side, height, panel);
        if (!C::split && &side == &inputs) weight_gradient(mine, recurrent, height, panel);
      }
    });
    if constexpr (values > 0) unit_gradients(mine);
  }

  void unit_gradients(const Mine& mine) {
    const Range mine_of_all = share(own.size, host.threads, mine.thread, L);
    for (int64_t i = mine_of_all.begin; i < mine_of_all.end; ++i)
      for (int64_t place = 0; place < own.places; ++place)
        for (int64_t b = 0; b < p.B; ++b) {
          S& recent = own.recent[(place * p.B + b) * own.size + i];
          own.sums[i] += double(recent);
          recent = 0;
        }
  }

  void pack_delta(const Mine& mine, const Side& side, int64_t begin, int64_t height, int64_t panel) {
    const int64_t first = delta_row(begin), wrap = delta_rows - first, q = panel * Product::vectors;
    const int count = int(side.order.vectors() - q < Product::vectors ? side.order.vectors() - q : Product::vectors);
    const auto row = [=](int64_t r) { return r < wrap ? first + r : r - wrap; };
    double total[Product::vectors * L] = {};
    const auto add = [&](int v, V value) {
      for (int lane = 0; lane < L; ++lane) total[v * L + lane] += double(value[lane]);
    };
    if constexpr (Engine::splits) {
      engine.pack_split(side.delta.split(), height, q, count, mine.panel, row);
      for (int64_t r = 0; r < height; ++r)
        for (int v = 0; v < count; ++v) add(v, side.delta.get(row(r), (q + v) * L));
    } else {
      for (int64_t r = 0; r < height; ++r) {
        const S* from = side.delta.row(row(r)) + q * L;
        for (int v = 0; v < count; ++v) {
          const V value = load<V>(from + v * L);
          store(mine.panel + (r * Product::vectors + v) * L, value);
          add(v, value);
        }
      }
    }
    for (int i = 0; i < count * L; ++i) side.bias[q * L + i] += total[i];
  }

  void weight_gradient(const Mine& mine, const Side& side, int64_t height, int64_t panel) {
    const int64_t q = panel * Product::vectors, row_size = side.row_size();
    for (int64_t begin = 0; begin < side.features; begin += room_rows) {  // there is room for so many rows
      const int64_t count = side.features - begin < room_rows ? side.features - begin : room_rows;
      const Rows rows = engine.rows_of(side.columns, mine.rows, begin, count);
      const auto put = [&](int64_t first, int number, int64_t, const V* sums) {
        for (int64_t i = begin + first; i < begin + first + number; ++i, sums += Product::vectors)
          for (int v = 0; v < Product::vectors && q + v < side.order.vectors(); ++v) {
            double* into = side.sums + i * row_size + (q + v) * L;
            for (int lane = 0; lane < L; ++lane) into[lane] += double(sums[v][lane]);
          }
      };
      engine.template product<Product>(height, rows, {0, count}, mine.panel, {0, 1}, none, sink<S>(put), mine.unit);
    }
  }

  void step_norms(const Mine& mine, int64_t begin, int64_t end) {
    const Range own = share(end - begin, host.threads, mine.thread);
    StepNorms<S> norm(norms + mine.thread * norms_room().total(), norms_room());
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
      if constexpr (values > 0) unit_norms(mine, norm, s);
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

  void unit_norms(const Mine& mine, StepNorms<S>& norm, int64_t s) const {
    const auto of_values = [&](int64_t first, int64_t count) {
      for (int64_t b = 0; b < p.B; ++b) mine.rows[b] = own.at(s, p.B, b) + first * own.units;
      return norm.of_bias(mine.rows, count * own.units, p.B);
    };
    const int64_t t = steps.time(s);
    if (C::bias_inside) p.norms[bias_ih][t] = p.norms[bias_hh][t] = of_values(0, G);
    int64_t first = C::bias_inside ? G : 0;
    for (int i = 0; i < max_unit_weights && C::unit_weights[i].name; first += C::unit_weights[i++].count)
      p.norms[unit_weights + i][t] = of_values(first, C::unit_weights[i].count);
  }

  // The same product once more carries the first step's delta to the initial state.
  void initial_gradient(const Mine& mine) {
    if (steps.ruled()) find_rules(mine, -1);
    for_carried(mine, 0, [&](int64_t b, int64_t q, V h) {
      store_some(p.d_initial[0] + b * p.P + q * L, load<V>(units(0, b, q)) + h, p.P - q * L);
    });
    for (int i = 1; i < C::states; ++i)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        for (int64_t j = mine.j.begin; j < mine.j.end; ++j)
          store_some(p.d_initial[i] + b * p.H + j * L, load<V>(units(i, b, j)), p.H - j * L);
  }

  void unpack_weights(const Mine& mine) {
    const auto bias_of = [&](Parameter parameter) { return C::bias_inside ? nullptr : p.d_weights[parameter]; };
    unpack(mine, inputs, p.d_weights[weight_ih], bias_of(bias_ih));
    unpack(mine, recurrent, p.d_weights[weight_hh], bias_of(bias_hh));
    if constexpr (two_products)
      unpack(mine, second, second_part<C>(p.d_weights, p, weight_hh), second_part<C>(p.d_weights, p, bias_hh));
    if constexpr (values > 0)
      if (mine.thread == 0) unpack_unit_weights();
  }

  void unpack(const Mine& mine, const Side& side, S* gradient, S* bias) const {
    const Range own = share(side.order.vectors(), host.threads, mine.thread);
    for (int64_t q = own.begin; q < own.end; ++q) {
      unpack_weight(side, q, gradient);
      for (int lane = 0; bias && lane < L; ++lane)
        if (const int64_t row = side.order.row(q, lane); row >= 0) bias[row] = S(side.bias[q * L + lane]);
    }
  }

  void unpack_unit_weights() const {
    const auto put = [&](int value, S* into, int) {
      for (int64_t u = 0; into && u < p.H; ++u) into[u] = S(own.sums[value * own.units + u]);
    };
    for_unit_values<C>(p.d_weights, p.H, put);
    for (int g = 0; C::bias_inside && g < G; ++g)
      for (int bias = bias_ih; bias <= bias_hh; ++bias) put(g, p.d_weights[bias] ? p.d_weights[bias] + g * p.H : nullptr, bias);
  }

  // Rows of the gradient from columns of the sums, a square at a time.
  void unpack_weight(const Side& side, int64_t q, S* gradient) const {
    const int64_t row_size = side.row_size();
    for (int64_t i = 0; i < side.features; i += L) {
      const int64_t count = side.features - i < L ? side.features - i : L;
      V block[L] = {};
      for (int k = 0; k < count; ++k)
        for (int lane = 0; lane < L; ++lane) block[k][lane] = S(side.sums[(i + k) * row_size + q * L + lane]);
      transpose(block);
      for (int lane = 0; lane < L; ++lane)
        if (const int64_t row = side.order.row(q, lane); row >= 0)
          store_some(gradient + row * side.features + i, block[lane], count);
    }
  }

  const Backward<S>& p;
  const Host& host;
  Team team;
  Engine engine;
  Plan plan;
  Steps<S> steps;
  History<S> history;
  Zoneout<S> zoneout;
  const bool zoned = zoneout.any();
  Forward<S> forward;      // the same problem, for `again`
  Again* again = nullptr;  // where states or saved values were not kept
  int64_t chunk_rows, delta_rows, column_size, room_rows;
  Weight *weight_packed, *recurrent_packed, *second_packed;  // summed over gates
  S* carry[max_states];  // (B, features of h), (B, units): elementwise part of what flows back, and between steps at rest all of it
  Side inputs, recurrent, second;
  Own own;
  Weight* panels;  // of delta, one a thread
  S* zeros;        // the state before an episode
  S* middle;       // (chunk rows, H): what the second product multiplied with
  S* notes;        // one row a thread
  const S** rows;
  uint8_t* rules;
  S* scales;
  Size* sizes[max_states];  // of what is carried
  double* norms = nullptr;
};

}  // namespace throughtime::TT_ISA
