// i, f, o = sigmoid(z)    g = tanh(z_g)    z = LN(W_ih x) + LN(W_hh h) + b_ih + b_hh, each LN over all gates    c' = f c + i g
// h' = o tanh(LN(c')), whose LN has a bias too (Ba et al. 2016, equations 20 to 22).
#pragma once

#include "layer_norm.hpp"
#include "lstm.hpp"

namespace throughtime::TT_ISA {

struct LayerNormLSTM : NormalisedProducts<LSTM> {
  static constexpr const char* name = "lstm_layer_norm";
  static constexpr UnitParameter unit_parameters[max_unit_parameters] = {
      {"weight_ln_ih", gates}, {"weight_ln_hh", gates}, {"weight_ln_c", 1}, {"bias_ln_c", 1}};
  enum Weight { BIAS, LN_X = gates, LN_R = 2 * gates, LN_C = 3 * gates, BIAS_C };
  enum Scratch { CELL = gates, T_C, row_scratch };  // kept between passes: the gates or dz, c', t of c'

  template <class Row>
  TT_INLINE static void forward_row(Row& row) {
    using V = typename Row::V;
    const auto of_x = norm_of_x(row), of_r = norm_of_r(row);
    for (int64_t j = 0; j < row.vectors(); ++j) note_gates(row, j, of_x, of_r);
    const auto of_c = norm_of<1>(row, c_of(row));
    for (int64_t j = 0; j < row.vectors(); ++j) {
      const V c = row.scratch(j, CELL);
      row.template set_next<C>(j, c);
      row.template set_next<H>(j, row.scratch(j, O) * tanh(row.w(j, LN_C) * of_c(c) + row.w(j, BIAS_C)));
    }
  }

  template <class Row>
  TT_INLINE static void backward_row(Row& row) {
    using V = typename Row::V;
    const auto of_x = norm_of_x(row), of_r = norm_of_r(row);
    for (int64_t j = 0; j < row.vectors(); ++j) note_gates(row, j, of_x, of_r);
    const auto of_c = norm_of<1>(row, c_of(row));

    RowTerms<V> c_terms, x_terms, r_terms;
    for (int64_t j = 0; j < row.vectors(); ++j) {
      const V c = of_c(row.scratch(j, CELL)), o = row.scratch(j, O), dh = row.dh(j);
      const V y = tanh(row.w(j, LN_C) * c + row.w(j, BIAS_C)), dy = dh * o * (1 - y * y), t = row.w(j, LN_C) * dy;
      row.add_weight(j, LN_C, dy * c);
      row.add_weight(j, BIAS_C, dy);
      c_terms.add(row, j, t, c);
      row.set_scratch(j, T_C, t);
      row.set_scratch(j, O, dh * y * (o * (1 - o)));
    }
    const auto c_means = c_terms.template means<1>(row);
    for (int64_t j = 0; j < row.vectors(); ++j) {
      V a[gates], dz[gates], ds[states];
      for (int g = 0; g < gates; ++g) a[g] = row.scratch(j, g);
      const V s[states] = {V{}, row.last_state(j)};
      V dn[states], kept[states] = {};
      row.arriving(j, dn, kept);
      dn[C] += of_c.backward(c_means, row.scratch(j, T_C), of_c(row.scratch(j, CELL)));
      dz[O] = a[O];  // from the loop above
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
        row.set_scratch(j, g, dz[g]);
      }
    }
    const auto x_means = x_terms.template means<gates>(row), r_means = r_terms.template means<gates>(row);
    for (int64_t j = 0; j < row.vectors(); ++j) {
      V dz[gates], dx[gates], dr[gates];
      for (int g = 0; g < gates; ++g) {
        dz[g] = row.scratch(j, g);
        dx[g] = of_x.backward(x_means, row.w(j, LN_X + g) * dz[g], of_x(row.a(j, g)));
        dr[g] = of_r.backward(r_means, row.w(j, LN_R + g) * dz[g], of_r(row.a(j, gates + g)));
      }
      row.set_delta(j, dz, dx, dr);
    }
  }

 private:
  template <class Row>
  TT_INLINE static auto c_of(const Row& row) {
    return [&row](int64_t j, int) __attribute__((always_inline)) { return row.scratch(j, CELL); };
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
    const V s[states] = {V{}, row.last_state(j)};
    for (int g = 0; g < gates; ++g) row.set_scratch(j, g, a[g]);
    row.set_scratch(j, CELL, after(a, s));
  }
};

}  // namespace throughtime::TT_ISA
