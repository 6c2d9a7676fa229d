// i, f, o = sigmoid(z)    g = tanh(z_g)    z = LN(W_ih x) + LN(W_hh h) + b_ih + b_hh, each LN over all gates    c' = f c + i g
// h' = o tanh(LN(c'))    LN(v) = w v^, v^ = (v - mean) / sqrt(variance + 1e-5), that of c' with a bias (Ba et al. 2016).
// Its derivative, with t = w dLN: dv = (t - mean(t) - v^ mean(t v^)) / sqrt(variance + 1e-5).
// A row is one sequence at one step, in vectors of units: see cpu/row.hpp.
#pragma once

#include "../row_unit.hpp"
#include "lstm.hpp"

namespace throughtime::TT_ISA {

struct LayerNormLSTM : LSTM {
  static constexpr const char* name = "lstm_layer_norm";
  static constexpr int saved = 2 * gates;  // W_ih x and W_hh h
  static constexpr bool split = true, bias_inside = true;
  static constexpr Phases phases = Phases::rows;
  static constexpr UnitWeight unit_weights[max_unit_weights] = {
      {"weight_ln_ih", gates}, {"weight_ln_hh", gates}, {"weight_ln_c", 1}, {"bias_ln_c", 1}};
  enum Weight { BIAS, LN_X = gates, LN_R = 2 * gates, LN_C = 3 * gates, BIAS_C };
  enum Note { CELL = gates, T_C, notes };  // between passes: the gates or dz, c', t of c'

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V*, V*, V* a) {
    for (int g = 0; g < gates; ++g) a[g] = x[g], a[gates + g] = r[g];
  }

  template <class Row>
  TT_INLINE static void forward_row(Row& row) {
    using V = typename Row::V;
    const auto of_x = norm_of<gates>(row, x_of(row)), of_r = norm_of<gates>(row, r_of(row));
    for (int64_t j = 0; j < row.vectors(); ++j) note_gates(row, j, of_x, of_r);
    const auto of_c = norm_of<1>(row, c_of(row));
    for (int64_t j = 0; j < row.vectors(); ++j) {
      const V c = row.note(j, CELL);
      row.template set_next<C>(j, c);
      row.template set_next<H>(j, row.note(j, O) * tanh(row.w(j, LN_C) * of_c(c) + row.w(j, BIAS_C)));
    }
  }

  template <class Row>
  TT_INLINE static void backward_row(Row& row) {
    using V = typename Row::V;
    const auto of_x = norm_of<gates>(row, x_of(row)), of_r = norm_of<gates>(row, r_of(row));
    for (int64_t j = 0; j < row.vectors(); ++j) note_gates(row, j, of_x, of_r);
    const auto of_c = norm_of<1>(row, c_of(row));

    Terms<V> c_terms, x_terms, r_terms;
    for (int64_t j = 0; j < row.vectors(); ++j) {
      const V c = of_c(row.note(j, CELL)), o = row.note(j, O), dh = row.dh(j);
      const V y = tanh(row.w(j, LN_C) * c + row.w(j, BIAS_C)), dy = dh * o * (1 - y * y), t = row.w(j, LN_C) * dy;
      row.add_weight(j, LN_C, dy * c);
      row.add_weight(j, BIAS_C, dy);
      c_terms.add(row, j, t, c);
      row.set_note(j, T_C, t);
      row.set_note(j, O, dh * y * (o * (1 - o)));
    }
    const auto c_means = c_terms.template means<1>(row);
    for (int64_t j = 0; j < row.vectors(); ++j) {
      V a[gates], dz[gates], ds[states];
      for (int g = 0; g < gates; ++g) a[g] = row.note(j, g);
      const V s[states] = {V{}, row.old_cell(j)};
      V dn[states], kept[states] = {};
      row.arriving(j, dn, kept);
      dn[C] += of_c.backward(c_means, row.note(j, T_C), of_c(row.note(j, CELL)));
      dz[O] = a[O];  // noted above
      backward_of_after(a, s, dn, ds, dz);
      ds[H] = V{};
      row.set_states(j, dn, ds, kept);
      for (int g = 0; g < gates; ++g) {
        const V x = of_x(row.a(j, g)), r = of_r(row.a(j, gates + g));
        row.add_weight(j, BIAS + g, dz[g]);
        row.add_weight(j, LN_X + g, dz[g] * x);
        row.add_weight(j, LN_R + g, dz[g] * r);
        x_terms.add(row, j, row.w(j, LN_X + g) * dz[g], x);
        r_terms.add(row, j, row.w(j, LN_R + g) * dz[g], r);
        row.set_note(j, g, dz[g]);
      }
    }
    const auto x_means = x_terms.template means<gates>(row), r_means = r_terms.template means<gates>(row);
    for (int64_t j = 0; j < row.vectors(); ++j) {
      V dz[gates], dx[gates], dr[gates];
      for (int g = 0; g < gates; ++g) {
        dz[g] = row.note(j, g);
        dx[g] = of_x.backward(x_means, row.w(j, LN_X + g) * dz[g], of_x(row.a(j, g)));
        dr[g] = of_r.backward(r_means, row.w(j, LN_R + g) * dz[g], of_r(row.a(j, gates + g)));
      }
      row.set_delta(j, dz, dx, dr);
    }
  }

 private:
  template <class S>
  struct Means {
    S t, product;  // of t, and of t v^
  };

  // Makes v^ of v, and dv of t and v^.
  template <class S>
  struct Norm {
    S mean, inverse;  // of v times `unit`
    S unit, slope;
    template <class V>
    TT_INLINE V operator()(V v) const {
      return (v * unit - mean) * inverse;
    }
    template <class V>
    TT_INLINE V backward(Means<S> means, V t, V v) const {
      return (t - means.t - v * means.product) * slope;
    }
  };

  // Once more where squares overflow, which is rare.
  template <int n, class Row, class Values>
  TT_INLINE static auto norm_of(const Row& row, const Values& values) {
    using S = Scalar<typename Row::V>;
    Norm<S> norm = norm_in<n>(row, values, S(1));
    if (__builtin_expect(!(norm.inverse > 0), 0)) norm = norm_in<n>(row, values, RowUnit<S>::large);
    return norm;
  }

  template <int n, class Row, class Values, class S>
  TT_INLINE static Norm<S> norm_in(const Row& row, const Values& values, S unit) {
    using V = typename Row::V;
    const S count = S(row.units() * n), eps = S(1e-5) * unit * unit + RowUnit<S>::least;  // never zero
    V sum = {}, squares = {};
    for (int64_t j = 0; j < row.vectors(); ++j)
      for (int k = 0; k < n; ++k) sum += row.keep(j, values(j, k) * unit);
    const S mean = row.total(sum) / count;
    for (int64_t j = 0; j < row.vectors(); ++j)
      for (int k = 0; k < n; ++k) {
        const V v = row.keep(j, values(j, k) * unit - mean);
        squares += v * v;
      }
    const S inverse = S(1) / S(__builtin_sqrt(row.total(squares) / count + eps));
    return {mean, inverse, unit, inverse * unit};
  }

  template <class V>
  struct Terms {
    V t_sum = {}, product_sum = {};
    template <class Row>
    TT_INLINE void add(const Row& row, int64_t j, V t, V v) {
      t_sum += row.keep(j, t);
      product_sum += row.keep(j, t * v);
    }
    template <int n, class Row>
    TT_INLINE Means<Scalar<V>> means(const Row& row) const {
      const auto count = Scalar<V>(row.units() * n);
      return {row.total(t_sum) / count, row.total(product_sum) / count};
    }
  };

  template <class Row>
  TT_INLINE static auto x_of(const Row& row) {
    return [&row](int64_t j, int g) __attribute__((always_inline)) { return row.a(j, g); };
  }
  template <class Row>
  TT_INLINE static auto r_of(const Row& row) {
    return [&row](int64_t j, int g) __attribute__((always_inline)) { return row.a(j, gates + g); };
  }
  template <class Row>
  TT_INLINE static auto c_of(const Row& row) {
    return [&row](int64_t j, int) __attribute__((always_inline)) { return row.note(j, CELL); };
  }

  template <class Row, class Norm>
  TT_INLINE static void note_gates(Row& row, int64_t j, const Norm& of_x, const Norm& of_r) {
    using V = typename Row::V;
    V z[gates], a[gates];
    for (int g = 0; g < gates; ++g)
      z[g] = row.w(j, LN_X + g) * of_x(row.a(j, g)) + row.w(j, LN_R + g) * of_r(row.a(j, gates + g)) + row.w(j, BIAS + g);
    a[I] = sigmoid(z[I]);
    a[F] = sigmoid(z[F]);
    a[G] = tanh(z[G]);
    a[O] = sigmoid(z[O]);
    const V s[states] = {V{}, row.old_cell(j)};
    for (int g = 0; g < gates; ++g) row.set_note(j, g, a[g]);
    row.set_note(j, CELL, after(a, s));
  }
};

}  // namespace throughtime::TT_ISA
