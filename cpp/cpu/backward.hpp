// The time loop, backward. Chunk by chunk from the end: the steps give the chunk's delta (the gradient of the pre-activations);
// while it is in cache, products take it into dx, dW_ih, dW_hh. delta is written twice: as rows, which the products sum over
// gates, and as panels, which they sum over rows. Weight gradients are summed in two levels: each chunk from zero, chunks in
// float64. What the tape does not hold, states or saved values, the forward loop computes again on the way.
#pragma once

#include "forward.hpp"
#include "norms.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class BackwardLoop {
  using V = Vec<S>;
  using Again = ForwardLoop<C, S, Tiles>;
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
        plan(make_plan<C>(p, host)),
        steps{p, p.truncate},
        order{G, p.H, L},
        history{p, p.B * plan.unit_vectors * C::saved * L},
        forward{p, {}} {
    row_size = plan.unit_vectors * G * L;
    chunk_rows = plan.chunk * p.B;
    column_size = ceil_div(chunk_rows, L) * L;
    panel_vectors = product_panels(order.vectors()) * product_vectors;
    weight_ih = scratch<S>(host, product_panels(ceil_div(p.I, L)) * product_vectors * L * row_size);
    weight_hh = scratch<S>(host, ceil_div(plan.unit_vectors, back) * back * L * row_size);
    for (int i = 0; i < C::states; ++i) carry[i] = scratch<S>(host, p.B * plan.unit_vectors * L);
    inputs = Side(host, *this, p.I + 1);
    recurrent = C::split ? Side(host, *this, p.H + 1) : inputs;
    if (!C::split) {
      recurrent.columns = scratch<S>(host, (p.H + 1) * column_size);
      recurrent.sums = scratch<double>(host, (p.H + 1) * row_size);
    }
    zeros = scratch<S>(host, p.H);
    rows = scratch<const S*>(host, 3 * host.threads * chunk_rows);
    rules = scratch<uint8_t>(host, 2 * host.threads * p.B);
    if (p.clip > 0) sizes = scratch<Size>(host, p.B * plan.unit_vectors);
    if (asks_norms()) norms = scratch<double>(host, host.threads * norms_room().total());
    __builtin_memset(zeros, 0, size_t(p.H) * sizeof(S));
    __builtin_memset(rules, 0, size_t(2 * host.threads * p.B));
    if (p.every || (C::saved && !p.saved)) prepare_again();
  }

  void prepare_again() {
    history.window_rows = p.every;
    for (int i = 0; p.every && i < C::states; ++i) history.window[i] = scratch<S>(host, p.every * p.B * p.H);
    history.saved_rows = p.every ? p.every : plan.chunk;
    history.saved_window = scratch<S>(host, history.saved_rows * history.saved_size);
    again = new (scratch<Again>(host, 1)) Again(forward, host, team, history);
  }

  // The two products of a pre-activation: with x and with h. A cell that is not split has one delta for both.
  struct Side {
    S* delta = nullptr;      // (rows, row_size): gradient of the pre-activation
    S* panels = nullptr;     // the same in tile order, (panel, chunk rows, product_vectors, L)
    S* columns = nullptr;    // (features + 1, column_size): the chunk's x or h, transposed, and a row of ones for the bias
    double* sums = nullptr;  // (features + 1, row_size): weight gradient so far, transposed, gates interleaved

    Side() = default;
    Side(const Host& host, const BackwardLoop& loop, int64_t features)
        : delta(scratch<S>(host, (loop.chunk_rows + loop.p.B) * loop.row_size)),
          panels(scratch<S>(host, loop.panel_vectors * L * loop.chunk_rows)),
          columns(scratch<S>(host, features * loop.column_size)),
          sums(scratch<double>(host, features * loop.row_size)) {}
  };

  struct Mine {
    int thread;
    Range b, j;               // sequences, vectors of units
    const S **rows, **other;  // room for a row of the chunk each
    S** targets;
    uint8_t *rules, *later;  // of the step, and of the step after
  };

  // A norm whose square may leave the range: largest * sqrt(squares).
  struct Size {
    double largest, squares;
  };

  // Where one step finds its rows.
  struct Moment {
    int64_t s, t;
    int64_t height, row;         // rows of the chunk, and the step's first one
    const S* before[C::states];  // (B, H)
    const S* after[C::states];
    const S* saved;
    S *input, *recurrent;  // delta, (B, row_size)
  };

  Moment moment(int64_t s, int64_t begin, int64_t end) const {
    Moment at{s,       steps.time(s),     (end - begin) * p.B, (s - begin) * p.B, {}, {}, history.saved(steps, s),
              nullptr, recurrent_delta(s)};
    at.input = C::split ? inputs.delta + at.row * row_size : at.recurrent;
    for (int i = 0; i < C::states; ++i) at.before[i] = history.state(i, s), at.after[i] = history.state(i, s + 1);
    return at;
  }

  bool asks_norms() const { return p.norms[0] != nullptr; }
  typename StepNorms<S>::Room norms_room() const { return {p.B, row_size, p.I, p.H}; }

  void work(int thread) {
    const FlushSubnormals flush;
    Mine mine{thread,
              plan.rows(p.B, thread),
              plan.units(thread),
              rows + 3 * thread * chunk_rows,
              nullptr,
              nullptr,
              rules + 2 * thread * p.B,
              rules + (2 * thread + 1) * p.B};
    mine.other = mine.rows + chunk_rows;
    mine.targets = const_cast<S**>(mine.other + chunk_rows);
    prepare(mine);
    if (!team.wait()) return;
    for (int64_t end = p.T; end > 0;) {
      const int64_t first = history.kept_before(end);
      if (p.every && !(again->advance(again->mine(thread), first, end) && team.wait())) return;
      for (; end > first; end = end > first + plan.chunk ? end - plan.chunk : first)
        if (!chunk(mine, end > first + plan.chunk ? end - plan.chunk : first, end)) return;
    }
    initial_gradient(mine);
    unpack_weights(mine);
  }

  // False when the call is to stop.
  bool chunk(const Mine& mine, int64_t begin, int64_t end) {
    if (team.interrupted(mine.thread)) return false;
    if (again && !p.every) again->save_again(again->mine(mine.thread), begin, end);
    transpose_operands(mine, begin, end);
    for (int64_t s = end - 1; s >= begin; --s) {
      if (!step(mine, moment(s, begin, end))) return false;
      if (plan.unit_parts > 1 && !team.wait()) return false;
    }
    if (!team.wait()) return false;
    input_gradient(mine, begin, end);
    weight_gradient(mine, inputs, p.I + 1, (end - begin) * p.B);
    weight_gradient(mine, recurrent, p.H + C::split, (end - begin) * p.B);
    if (asks_norms()) step_norms(mine, begin, end);
    return team.wait();
  }

  void prepare(const Mine& mine) {
    const int t = mine.thread, n = host.threads;
    if (again) again->pack(t);
    pack_columns<product_vectors>(p.weight_ih, p.I, order, share(product_panels(ceil_div(p.I, L)), n, t), weight_ih);
    pack_columns<back>(p.weight_hh, p.H, order, share(ceil_div(plan.unit_vectors, back), n, t), weight_hh);
    clear(inputs.sums, share((p.I + 1) * row_size, n, t));
    clear(recurrent.sums, share((p.H + 1) * row_size, n, t));
    const Range ones = share(chunk_rows, n, t);
    for (int64_t r = ones.begin; r < ones.end; ++r)
      inputs.columns[p.I * column_size + r] = recurrent.columns[p.H * column_size + r] = 1;
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
  // The recurrent delta must outlive its chunk by one step: steps take turns in chunk + 1 places.
  S* recurrent_delta(int64_t s) const { return recurrent.delta + s % (plan.chunk + 1) * p.B * row_size; }

  // The chunk's x and h, transposed; rows that take no part are zero whatever they hold (padding may be NaN).
  void transpose_operands(const Mine& mine, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * p.B;
    const Range own = share(count, host.threads, mine.thread, L);
    for (int64_t r = own.begin; r < own.end; ++r) {
      const int64_t s = begin + r / p.B, b = r % p.B;
      const int rule = steps.ruled() ? steps.rule(s, b) : 0;
      mine.rows[r] = rule & inactive ? nullptr : x(s, b);
      mine.other[r] = rule & (inactive | fresh) ? nullptr : moment(s, begin, end).before[0] + b * p.H;
    }
    for (int64_t r = own.begin; r < own.end; r += L) {
      transpose_rows(mine.rows + r, own.end - r, p.I, inputs.columns + r, column_size);
      transpose_rows(mine.other + r, own.end - r, p.H, recurrent.columns + r, column_size);
    }
  }

  const S* x(int64_t s, int64_t b) const { return p.x.data + steps.time(s) * p.x.time + b * p.x.batch; }

  bool step(const Mine& mine, const Moment& at) {
    if (steps.ruled()) find_rules(mine, at.s);
    if (p.clip > 0) {
      for_carried(mine, at.s + 1, [&](int64_t b, int64_t j, V h) { gather(b, j, h); });
      if (plan.unit_parts > 1 && !team.wait()) return false;
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
    for (int64_t b = mine.b.begin; b < mine.b.end; ++b) mine.rows[b] = recurrent_delta(later) + b * row_size;
    const Range panels{mine.j.begin / back, ceil_div(mine.j.end, back)};
    const auto tile = [&](int64_t first, int count, int64_t j, const V* sums) {
      for (int64_t b = first; b < first + count; ++b, sums += back)
        for (int v = 0; v < back && j + v < mine.j.end; ++v) put(b, j + v, mine.later[b] ? V{} : sums[v]);
    };
    product<typename Tiles::Backward>(K, mine.rows, mine.b, weight_hh, panels, none, sink<S>(tile));
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
    put_delta(inputs, at.input, at, b, j, dx);
    if constexpr (C::split) put_delta(recurrent, at.recurrent, at, b, j, dr);
  }

  TT_INLINE void add_loss(const Moment& at, int64_t b, int64_t j, V* dn) {
    const int64_t n = p.H - j * L;
    if (p.d_output.data) dn[0] += load_some<V>(p.d_output.data + at.t * p.d_output.time + b * p.d_output.batch + j * L, n);
    if (p.d_cell) dn[C::states - 1] += load_some<V>(p.d_cell + (at.t * p.B + b) * p.H + j * L, n);
  }

  TT_INLINE void put_delta(const Side& side, S* rows, const Moment& at, int64_t b, int64_t j, const V* delta) {
    for (int g = 0; g < G; ++g) {
      const int64_t q = j * G + g;
      store(rows + b * row_size + q * L, delta[g]);
      const int64_t panel_row = q / product_vectors * at.height + at.row + b;
      store(side.panels + (panel_row * product_vectors + q % product_vectors) * L, delta[g]);
    }
  }

  void input_gradient(const Mine& mine, int64_t begin, int64_t end) {
    const Range own = share((end - begin) * p.B, host.threads, mine.thread, ProductShape::rows);
    for (int64_t r = own.begin; r < own.end; ++r) {
      const int64_t s = begin + r / p.B, b = r % p.B;
      mine.rows[r] = moment(s, begin, end).input + b * row_size;
      mine.targets[r] = p.d_input.data + steps.time(s) * p.d_input.time + b * p.d_input.batch;
    }
    const Range panels{0, product_panels(ceil_div(p.I, L))};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += product_vectors) {
        // Zero delta times an infinite weight is no zero.
        const bool idle = steps.ruled() && steps.rule(begin + r / p.B, r % p.B) & inactive;
        for (int v = 0; v < product_vectors && (q + v) * L < p.I; ++v) {
          S* target = mine.targets[r] + (q + v) * L;
          const int64_t n = p.I - (q + v) * L;
          const V part = idle ? V{} : sums[v];
          store_some(target, p.add_to_input ? part + load_some<V>(target, n) : part, n);
        }
      }
    };
    product<ProductShape>(row_size, mine.rows, own, weight_ih, panels, none, sink<S>(put));
  }

  void weight_gradient(const Mine& mine, const Side& side, int64_t features, int64_t height) {
    const Range panels = share(panel_vectors / product_vectors, host.threads, mine.thread);
    for (int64_t begin = 0; begin < features; begin += chunk_rows) {  // there is room for so many rows
      const int64_t count = features - begin < chunk_rows ? features - begin : chunk_rows;
      for (int64_t i = 0; i < count; ++i) mine.rows[i] = side.columns + (begin + i) * column_size;
      const auto put = [&](int64_t first, int rows, int64_t q, const V* sums) {
        for (int64_t i = begin + first; i < begin + first + rows; ++i, sums += product_vectors)
          for (int v = 0; v < product_vectors && q + v < order.vectors(); ++v) {
            double* into = side.sums + i * row_size + (q + v) * L;
            for (int lane = 0; lane < L; ++lane) into[lane] += double(sums[v][lane]);
          }
      };
      product<ProductShape>(height, mine.rows, {0, count}, side.panels, panels, none, sink<S>(put));
    }
  }

  void step_norms(const Mine& mine, int64_t begin, int64_t end) {
    const Range own = share(end - begin, host.threads, mine.thread);
    StepNorms<S> norm(norms + mine.thread * norms_room().total(), norms_room());
    for (int64_t s = begin + own.begin; s < begin + own.end; ++s) {
      const Moment at = moment(s, begin, end);
      for (int hidden = 0; hidden < 2; ++hidden) {
        int64_t count = 0;
        for (int64_t b = 0; b < p.B; ++b) {
          const int rule = steps.ruled() ? steps.rule(s, b) : 0;
          if (rule & inactive) continue;
          mine.rows[count] = (hidden ? at.recurrent : at.input) + b * row_size;
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
    for (int64_t q = own.begin; q < own.end; ++q)
      for (int lane = 0; lane < L; ++lane) {
        const int64_t row = order.row(q, lane), column = q * L + lane;
        if (row < 0) continue;
        for (int64_t i = 0; i < p.I; ++i) p.d_weight_ih[row * p.I + i] = S(inputs.sums[i * row_size + column]);
        for (int64_t i = 0; i < p.H; ++i) p.d_weight_hh[row * p.H + i] = S(recurrent.sums[i * row_size + column]);
        const double bias = inputs.sums[p.I * row_size + column];
        if (p.d_bias_ih) p.d_bias_ih[row] = S(bias);
        if (p.d_bias_hh) p.d_bias_hh[row] = S(C::split ? recurrent.sums[p.H * row_size + column] : bias);
      }
  }

  const Backward<S>& p;
  const Host& host;
  Team team;
  Plan plan;
  Steps<S> steps;
  Interleaved order;
  History<S> history;
  Forward<S> forward;      // the same problem, for `again`
  Again* again = nullptr;  // where states or saved values were not kept
  int64_t row_size, chunk_rows, column_size, panel_vectors;
  S *weight_ih, *weight_hh;  // packed, summed over gates
  S* carry[max_states];      // (B, units): elementwise part of what flows back, and between steps at rest all of it
  Side inputs, recurrent;
  S* zeros;  // the state before an episode
  const S** rows;
  uint8_t* rules;
  Size* sizes = nullptr;  // (B, units): of what is carried
  double* norms = nullptr;
};

}  // namespace throughtime::TT_ISA
