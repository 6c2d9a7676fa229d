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
  static constexpr int L = lanes<S>, G = C::gates, back = Tiles::Backward::vectors;
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
        order{G, p.H, L},
        history{p, p.B * plan.unit_vectors * C::saved * L},
        forward{p, {}} {
    row_size = plan.unit_vectors * G * L;
    chunk_rows = plan.chunk * p.B;
    delta_rows = chunk_rows + p.B;
    column_size = Engine::columns_padded(chunk_rows);
    panel_size = engine.packed_size(column_size, Product::vectors);
    panels = scratch<Weight>(host, host.threads * panel_size);
    const int64_t back_vectors = Tiles::Backward::panels(plan.unit_vectors) * back;
    weight_ih = scratch<Weight>(host, engine.packed_size(row_size, Product::panels(ceil_div(p.I, L)) * Product::vectors));
    weight_hh = scratch<Weight>(host, engine.packed_size(row_size, back_vectors));
    for (int i = 0; i < C::states; ++i) carry[i] = scratch<S>(host, p.B * plan.unit_vectors * L);
    inputs.add_delta(*this);
    if (C::split) recurrent.add_delta(*this);
    else recurrent = inputs;
    inputs.add_operand(*this, p.I);
    recurrent.add_operand(*this, p.H);
    zeros = scratch<S>(host, p.H);
    room_rows = column_size;  // a left operand of so many rows, and the rows to be transposed
    rows = scratch<const S*>(host, 3 * host.threads * room_rows);
    rules = scratch<uint8_t>(host, 2 * host.threads * p.B);
    if (p.clip > 0) sizes = scratch<Size>(host, p.B * plan.unit_vectors);
    if (asks_norms()) norms = scratch<double>(host, host.threads * norms_room().total());
    __builtin_memset(zeros, 0, size_t(p.H) * sizeof(S));
    __builtin_memset(rules, 0, size_t(2 * host.threads * p.B));
    if (p.every || (C::saved && !p.saved)) prepare_again();
  }

  void prepare_again() {
    // At least a chunk, for products of few rows are slow.
    if (p.every) history.apart = ceil_div(plan.chunk, p.every) * p.every;
    history.window_rows = history.apart;
    for (int i = 0; p.every && i < C::states; ++i) history.window[i] = scratch<S>(host, history.apart * p.B * p.H);
    history.saved_rows = p.every ? history.apart : plan.chunk;
    history.saved_window = scratch<S>(host, history.saved_rows * history.saved_size);
    History<S> own = history;
    own.again = true;
    again = new (scratch<Again>(host, 1)) Again(forward, host, team, own);
  }

  // The two products of a pre-activation: with x and with h. A cell that is not split has one delta for both. A step's delta
  // must outlive its chunk by one step, so steps take turns in chunk + 1 places.
  struct Side {
    S* delta = nullptr;                // (places, B, row_size): gradient of the pre-activation; null where copies are enough
    Rows split;                        // the same as a left operand, where those are copies
    typename Engine::Columns columns;  // (features, column_size): the chunk's x or h, transposed
    double* sums;                      // (features, row_size): weight gradient so far, transposed, gates interleaved
    double* bias;                      // (row_size): its gradient so far

    void add_delta(const BackwardLoop& loop) {
      const Host& host = loop.host;
      bias = scratch<double>(host, loop.row_size);
      if (!Engine::splits || loop.asks_norms()) delta = scratch<S>(host, loop.delta_rows * loop.row_size);
      if constexpr (Engine::splits) {
        const int64_t size = loop.engine.room_size(loop.delta_rows, loop.row_size);
        split = loop.engine.rows(scratch<Weight>(host, size), loop.delta_rows, loop.row_size);
        if (Engine::columns_padded(loop.row_size) > loop.row_size)  // the rest of a tile's depth must be zeros
          for (int64_t row = 0; row < loop.delta_rows; ++row) split.put(row, loop.row_size, V{});
      }
    }

    void add_operand(const BackwardLoop& loop, int64_t features) {
      const int64_t size = Engine::splits ? loop.engine.room_size(features, loop.column_size) : features * loop.column_size;
      columns = loop.engine.columns(scratch<Weight>(loop.host, size), features, loop.column_size);
      sums = scratch<double>(loop.host, features * loop.row_size);
    }
  };

  struct Mine {
    int thread;
    typename Engine::Unit& unit;
    Range b, j;               // sequences, vectors of units
    const S **rows, **other;  // room for a row of the chunk each
    S** targets;
    Weight* panel;           // of the chunk's delta
    uint8_t *rules, *later;  // of the step, and of the step after
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
  };

  Moment moment(int64_t s) const {
    Moment at{s, steps.time(s), {}, {}, history.saved(steps, s), delta_row(s)};
    for (int i = 0; i < C::states; ++i) at.before[i] = history.state(i, s), at.after[i] = history.state(i, s + 1);
    return at;
  }

  int64_t delta_row(int64_t s) const { return s % (plan.chunk + 1) * p.B; }

  bool asks_norms() const { return p.norms[0] != nullptr; }
  typename StepNorms<S>::Room norms_room() const { return {p.B, row_size, p.I, p.H}; }

  void work(int thread) {
    const FlushSubnormals flush;
    typename Engine::Unit unit;
    Mine mine{thread,  unit,    plan.rows(p.B, thread),       plan.units(thread),       rows + 3 * thread * room_rows,
              nullptr, nullptr, panels + thread * panel_size, rules + 2 * thread * p.B, rules + (2 * thread + 1) * p.B};
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
    if (again && !p.every) again->save_again(again->mine(mine.thread, mine.unit), begin, end);
    transpose_operands(mine, begin, end);
    for (int64_t s = end - 1; s >= begin; --s) {
      if (!step(mine, moment(s))) return false;
      if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
    }
    if (!team.wait(mine.thread)) return false;
    input_gradient(mine, begin, end);
    weight_gradients(mine, begin, end);
    if (asks_norms()) step_norms(mine, begin, end);
    return team.wait(mine.thread);
  }

  void prepare(const Mine& mine) {
    const int t = mine.thread, n = host.threads;
    if (again) again->pack(t);
    const Range input_panels = share(Product::panels(ceil_div(p.I, L)), n, t);
    engine.template pack_columns<Product::vectors>(p.weight_ih, p.I, order, input_panels, weight_ih);
    const Range back_panels = share(Tiles::Backward::panels(plan.unit_vectors), n, t);
    engine.template pack_columns<back>(p.weight_hh, p.H, order, back_panels, weight_hh);
    clear(inputs.sums, share(p.I * row_size, n, t));
    clear(recurrent.sums, share(p.H * row_size, n, t));
    clear(inputs.bias, share(row_size, n, t));
    if (C::split) clear(recurrent.bias, share(row_size, n, t));
    for (int i = 0; i < C::states; ++i)
      for (int64_t b = mine.b.begin; b < mine.b.end; ++b)
        for (int64_t j = mine.j.begin; j < mine.j.end; ++j)
          store(units(carry[i], b, j), load_some<V>(p.d_final[i] + b * p.H + j * L, p.H - j * L));
  }

  template <class T>
  static void clear(T* data, Range range) {
    __builtin_memset(data + range.begin, 0, size_t(range.end - range.begin) * sizeof(T));
  }

  S* units(S* data, int64_t b, int64_t j) const { return data + (b * plan.unit_vectors + j) * L; }

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
      mine.other[r] = rule & (inactive | fresh) ? nullptr : history.state(0, s) + b * p.H;
    }
    for (int64_t r = own.begin; r < own.end; r += L) {
      const auto put = [&](const Side& side) { return [&side, r](int64_t k, V value) { side.columns.put(k, r, value); }; };
      transpose_rows(mine.rows + r, own.end - r, p.I, put(inputs));
      transpose_rows(mine.other + r, own.end - r, p.H, put(recurrent));
    }
  }

  const S* x(int64_t s, int64_t b) const { return p.x.data + steps.time(s) * p.x.time + b * p.x.batch; }

  bool step(const Mine& mine, const Moment& at) {
    if (steps.ruled()) find_rules(mine, at.s);
    if (p.clip > 0) {
      for_carried(mine, at.s + 1, [&](int64_t b, int64_t j, V h) { gather(b, j, h); });
      if (plan.unit_parts > 1 && !team.wait(mine.thread)) return false;
      apply_clipped(mine, at);
    } else {
      for_carried(mine, at.s + 1, [&](int64_t b, int64_t j, V h) {
        V dn[C::states];
        for (int i = 0; i < C::states; ++i) dn[i] = load<V>(units(carry[i], b, j));
        dn[0] += h;
        apply(mine, at, b, j, dn);
      });
    }
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
    const int64_t K = later < p.T ? row_size : 0;
    const Rows rows = delta_as_rows(mine, recurrent, delta_row(later), mine.b);
    const Panels panels{mine.j.begin / back, ceil_div(mine.j.end, back), later % 2 != 0};
    const auto tile = [&](int64_t first, int count, int64_t j, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && j + v < mine.j.end; ++v) put(b, j + v, mine.later[b] ? V{} : sums[v]);
    };
    engine.template product<typename Tiles::Backward>(K, rows, mine.b, weight_hh, panels, none, sink<S>(tile), mine.unit);
  }

  // Rows `range`, counted from `first`, of a side's delta as a left operand.
  Rows delta_as_rows(const Mine& mine, const Side& side, int64_t first, Range range) const {
    if constexpr (Engine::splits) {
      return side.split.from(first);
    } else {
      for (int64_t r = range.begin; r < range.end; ++r) mine.rows[r] = side.delta + (first + r) * row_size;
      return {mine.rows};
    }
  }

  // With clipping, first pass: the carried gradient goes to memory, and its size.
  void gather(int64_t b, int64_t j, V h) {
    store(units(carry[0], b, j), load<V>(units(carry[0], b, j)) + h);
    Size& size = sizes[b * plan.unit_vectors + j];
    size = {0, 0};
    for (int i = 0; i < C::states; ++i)
      for (int lane = 0; lane < L; ++lane) {
        const double value = __builtin_fabs(double(units(carry[i], b, j)[lane]));
        size.largest = value > size.largest ? value : size.largest;
      }
    for (int i = 0; i < C::states && size.largest > 0; ++i)
      for (int lane = 0; lane < L; ++lane) {
        const double part = double(units(carry[i], b, j)[lane]) / size.largest;
        size.squares += part * part;
      }
  }

  double carried_norm(int64_t b) const {
    const Size* row = sizes + b * plan.unit_vectors;
    Size all{0, 0};
    for (int64_t j = 0; j < plan.unit_vectors; ++j) all.largest = row[j].largest > all.largest ? row[j].largest : all.largest;
    for (int64_t j = 0; j < plan.unit_vectors && all.largest > 0; ++j) {
      const double part = row[j].largest / all.largest;
      all.squares += row[j].squares * part * part;
    }
    return all.largest * __builtin_sqrt(all.squares);
  }

  // Second pass: scaled down to the norm `clip` where it is larger. The last step's carry is the final state's gradient, which
  // is the loss's own and stays.
  void apply_clipped(const Mine& mine, const Moment& at) {
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) {
      const double norm = carried_norm(b);
      const bool clips = norm > p.clip && !(mine.rules[b] & inactive) && !steps.last(at.s, b);
      const S scale = clips ? S(p.clip / norm) : S(1);
      if (mine.j.begin == 0 && mine.j.end > 0) p.clipped[at.t * p.B + b] = clips;
      for (int64_t j = mine.j.begin; j < mine.j.end; ++j) {
        V dn[C::states];
        for (int i = 0; i < C::states; ++i) dn[i] = load<V>(units(carry[i], b, j)) * scale;
        apply(mine, at, b, j, dn);
      }
    }
  }

  // The cell of one vector of units of one sequence; dn is what is carried to its states.
  TT_INLINE void apply(const Mine& mine, const Moment& at, int64_t b, int64_t j, V* dn) {
    const int64_t n = p.H - j * L, unit = b * p.H + j * L;
    V dx[G] = {}, dr[G] = {};
    if (mine.rules[b] & inactive) {
      for (int i = 0; i < C::states; ++i) store(units(carry[i], b, j), dn[i]);
      for (int i = 0; i < C::states; ++i) dn[i] = V{};
    } else {
      V a[C::saved + 1], old[C::states], next[C::states], ds[C::states];
      const S* saved = at.saved + (b * plan.unit_vectors + j) * C::saved * L;
      for (int i = 0; i < C::saved; ++i) a[i] = load<V>(saved + i * L);
      for (int i = 0; i < C::states; ++i) {
        old[i] = mine.rules[b] & fresh ? V{} : load_some<V>(at.before[i] + unit, n);
        next[i] = load_some<V>(at.after[i] + unit, n);
      }
      add_loss(at, b, j, dn);
      C::backward(a, old, next, dn, ds, dx, dr);
      // Lanes past H may hold NaN, from an infinite input times their zero weights, and must not reach a sum over lanes.
      const bool stops = mine.rules[b] & (fresh | cut);
      for (int i = 0; i < C::states; ++i) store(units(carry[i], b, j), stops ? V{} : keep_some<S>(ds[i], n));
      for (int g = 0; g < G; ++g) dx[g] = keep_some<S>(dx[g], n), dr[g] = keep_some<S>(dr[g], n);
    }
    for (int i = 0; i < C::states; ++i)
      if (p.d_states[i]) store_some(p.d_states[i] + at.t * p.B * p.H + unit, dn[i], n);
    if (p.d_gates)
      for (int g = 0; g < G; ++g) store_some(p.d_gates + ((at.t * p.B + b) * G + g) * p.H + j * L, dx[g], n);
    put_delta(inputs, at, b, j, dx);
    if constexpr (C::split) put_delta(recurrent, at, b, j, dr);
  }

  TT_INLINE void add_loss(const Moment& at, int64_t b, int64_t j, V* dn) {
    const int64_t n = p.H - j * L;
    if (p.d_output.data) dn[0] += load_some<V>(p.d_output.data + at.t * p.d_output.time + b * p.d_output.batch + j * L, n);
    if (p.d_cell) dn[C::states - 1] += load_some<V>(p.d_cell + (at.t * p.B + b) * p.H + j * L, n);
  }

  TT_INLINE void put_delta(const Side& side, const Moment& at, int64_t b, int64_t j, const V* delta) {
    const int64_t row = at.delta_row + b;
    for (int g = 0; g < G; ++g) {
      const int64_t k = (j * G + g) * L;
      if (!Engine::splits || side.delta) store(side.delta + row * row_size + k, delta[g]);
      if constexpr (Engine::splits) side.split.put(row, k, delta[g]);
    }
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
      const Rows rows = delta_as_rows(mine, inputs, i ? -wrap : first, parts[i]);
      engine.template product<Product>(row_size, rows, parts[i], weight_ih, panels, none, sink<S>(put), mine.unit);
    }
  }

  // Panel by panel, packed just before it is used. The bias's gradient is the sum of delta's rows.
  void weight_gradients(const Mine& mine, int64_t begin, int64_t end) {
    const Range own = share(Product::panels(order.vectors()), host.threads, mine.thread);
    const int64_t height = (end - begin) * p.B;
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      pack_delta(mine, inputs, begin, height, panel);
      weight_gradient(mine, inputs, p.I, height, panel);
      if (C::split) pack_delta(mine, recurrent, begin, height, panel);
      weight_gradient(mine, recurrent, p.H, height, panel);
    }
  }

  void pack_delta(const Mine& mine, const Side& side, int64_t begin, int64_t height, int64_t panel) {
    const int64_t first = delta_row(begin), wrap = delta_rows - first, q = panel * Product::vectors;
    const int count = int(order.vectors() - q < Product::vectors ? order.vectors() - q : Product::vectors);
    const auto row = [=](int64_t r) { return r < wrap ? first + r : r - wrap; };
    double total[Product::vectors * L] = {};
    const auto add = [&](int v, V value) {
      for (int lane = 0; lane < L; ++lane) total[v * L + lane] += double(value[lane]);
    };
    if constexpr (Engine::splits) {
      engine.pack_split(side.split, height, q, count, mine.panel, row);
      for (int64_t r = 0; r < height; ++r)
        for (int v = 0; v < count; ++v) add(v, side.split.get(row(r), (q + v) * L));
    } else {
      for (int64_t r = 0; r < height; ++r) {
        const S* from = side.delta + row(r) * row_size + q * L;
        for (int v = 0; v < count; ++v) {
          const V value = load<V>(from + v * L);
          store(mine.panel + (r * Product::vectors + v) * L, value);
          add(v, value);
        }
      }
    }
    for (int i = 0; i < count * L; ++i) side.bias[q * L + i] += total[i];
  }

  void weight_gradient(const Mine& mine, const Side& side, int64_t features, int64_t height, int64_t panel) {
    const int64_t q = panel * Product::vectors;
    for (int64_t begin = 0; begin < features; begin += room_rows) {  // there is room for so many rows
      const int64_t count = features - begin < room_rows ? features - begin : room_rows;
      const Rows rows = engine.rows_of(side.columns, mine.rows, begin, count);
      const auto put = [&](int64_t first, int number, int64_t, const V* sums) {
        for (int64_t i = begin + first; i < begin + first + number; ++i, sums += Product::vectors)
          for (int v = 0; v < Product::vectors && q + v < order.vectors(); ++v) {
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
      const Moment at = moment(s);
      for (int hidden = 0; hidden < 2; ++hidden) {
        int64_t count = 0;
        for (int64_t b = 0; b < p.B; ++b) {
          const int rule = steps.ruled() ? steps.rule(s, b) : 0;
          if (rule & inactive) continue;
          mine.rows[count] = (hidden ? recurrent : inputs).delta + (at.delta_row + b) * row_size;
          mine.other[count] = !hidden ? x(s, b) : rule & fresh ? zeros : at.before[0] + b * p.H;
          ++count;
        }
        p.norms[hidden][at.t] = norm.of_weight(mine.rows, row_size, mine.other, hidden ? p.H : p.I, count);
        p.norms[2 + hidden][at.t] = norm.of_bias(mine.rows, row_size, count);
      }
    }
  }

  // The same product once more carries the first step's delta to the initial state.
  void initial_gradient(const Mine& mine) {
    if (steps.ruled()) find_rules(mine, -1);
    for_carried(mine, 0, [&](int64_t b, int64_t j, V h) {
      for (int i = 0; i < C::states; ++i) {
        const V value = load<V>(units(carry[i], b, j));
        store_some(p.d_initial[i] + b * p.H + j * L, i == 0 ? value + h : value, p.H - j * L);
      }
    });
  }

  void unpack_weights(const Mine& mine) {
    const Range own = share(order.vectors(), host.threads, mine.thread);
    for (int64_t q = own.begin; q < own.end; ++q) {
      unpack_weight(inputs.sums, p.I, q, p.d_weight_ih);
      unpack_weight(recurrent.sums, p.H, q, p.d_weight_hh);
      for (int lane = 0; lane < L; ++lane) {
        const int64_t row = order.row(q, lane);
        if (row < 0) continue;
        if (p.d_bias_ih) p.d_bias_ih[row] = S(inputs.bias[q * L + lane]);
        if (p.d_bias_hh) p.d_bias_hh[row] = S(recurrent.bias[q * L + lane]);
      }
    }
  }

  // Rows of the gradient from columns of the sums, a square at a time.
  void unpack_weight(const double* sums, int64_t features, int64_t q, S* gradient) const {
    for (int64_t i = 0; i < features; i += L) {
      const int64_t count = features - i < L ? features - i : L;
      V block[L] = {};
      for (int k = 0; k < count; ++k)
        for (int lane = 0; lane < L; ++lane) block[k][lane] = S(sums[(i + k) * row_size + q * L + lane]);
      transpose(block);
      for (int lane = 0; lane < L; ++lane)
        if (const int64_t row = order.row(q, lane); row >= 0) store_some(gradient + row * features + i, block[lane], count);
    }
  }

  const Backward<S>& p;
  const Host& host;
  Team team;
  Engine engine;
  Plan plan;
  Steps<S> steps;
  Interleaved order;
  History<S> history;
  Forward<S> forward;      // the same problem, for `again`
  Again* again = nullptr;  // where states or saved values were not kept
  int64_t row_size, chunk_rows, delta_rows, column_size, panel_size, room_rows;
  Weight *weight_ih, *weight_hh;  // packed, summed over gates
  S* carry[max_states];           // (B, units): elementwise part of what flows back, and between steps at rest all of it
  Side inputs, recurrent;
  Weight* panels;  // of delta, one a thread
  S* zeros;        // the state before an episode
  const S** rows;
  uint8_t* rules;
  Size* sizes = nullptr;  // (B, units): of what is carried
  double* norms = nullptr;
};

}  // namespace throughtime::TT_ISA
