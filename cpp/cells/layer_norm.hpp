// Layer normalisation within a cell (Ba et al. 2016), of the products for all gates of a sequence:
// LN(v) = w v^, v^ = (v - mean) / sqrt(variance + 1e-5). Its derivative, with t = w dLN:
// dv = (t - mean(t) - v^ mean(t v^)) / sqrt(variance + 1e-5).
// A row is one sequence at one step, in vectors of units: see cpu/recurrent/whole_row.hpp.
#pragma once

#include "../row_unit.hpp"
#include "cell.hpp"

namespace throughtime::TT_ISA {

template <class S>
struct RowMeans {
  S t, product;  // of t, and of t v^
};

// Computes v^ from v, and dv from t and v^.
template <class S>
struct RowNorm {
  S mean, inverse;  // mean and reciprocal deviation of v times `unit`
  S unit, slope;
  template <class V>
  TT_INLINE V operator()(V v) const {
    return (v * unit - mean) * inverse;
  }
  template <class V>
  TT_INLINE V backward(RowMeans<S> means, V t, V v) const {
    return (t - means.t - v * means.product) * slope;
  }
};

template <class S>
TT_INLINE S square_root(S x) {
  return S(__builtin_sqrt(x));
}

// values(j, k): number k (of n) of unit j.
template <int n, class Row, class Values, class S>
TT_INLINE RowNorm<S> norm_in(const Row& row, const Values& values, S unit) {
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
  const S inverse = S(1) / square_root(row.total(squares) / count + eps);
  return {mean, inverse, unit, inverse * unit};
}

// Repeats with the row scaled down if squares overflow, which is rare.
template <int n, class Row, class Values>
TT_INLINE auto norm_of(const Row& row, const Values& values) {
  using S = Scalar<typename Row::V>;
  RowNorm<S> norm = norm_in<n>(row, values, S(1));
  if (__builtin_expect(!(norm.inverse > 0), 0)) norm = norm_in<n>(row, values, S(RowUnit<S>::large));
  return norm;
}

template <class V>
struct RowTerms {
  V t_sum = {}, product_sum = {};
  template <class Row>
  TT_INLINE void add(const Row& row, int64_t j, V t, V v) {
    t_sum += row.keep(j, t);
    product_sum += row.keep(j, t * v);
  }
  template <int n, class Row>
  TT_INLINE RowMeans<Scalar<V>> means(const Row& row) const {
    const auto count = Scalar<V>(row.units() * n);
    return {row.total(t_sum) / count, row.total(product_sum) / count};
  }
};

// Common part of the cells with LN(W_ih x) and LN(W_hh h), each over all gates; Plain has the equations.
template <class Plain>
struct NormalisedProducts : Plain {
  static constexpr int gates = Plain::gates;
  static constexpr int saved = 2 * gates;  // W_ih x and W_hh h
  static constexpr bool split = true, bias_inside = true;
  static constexpr Phases phases = Phases::rows;
  static constexpr UnitParameter unit_parameters[max_unit_parameters] = {{"weight_ln_ih", gates}, {"weight_ln_hh", gates}};

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V*, V*, V* a) {
    for (int g = 0; g < gates; ++g) a[g] = x[g], a[gates + g] = r[g];
  }

  template <class Row>
  TT_INLINE static auto norm_of_x(const Row& row) {
    return norm_of<gates>(row, [&row](int64_t j, int g) __attribute__((always_inline)) { return row.a(j, g); });
  }
  template <class Row>
  TT_INLINE static auto norm_of_r(const Row& row) {
    return norm_of<gates>(row, [&row](int64_t j, int g) __attribute__((always_inline)) { return row.a(j, gates + g); });
  }
};

// A cell of one phase and one state whose products are normalised; biases are added after that.
template <class Plain>
struct LayerNorm : NormalisedProducts<Plain> {
  using Base = NormalisedProducts<Plain>;
  using Base::gates, Plain::H;
  static constexpr bool biases_apart = Plain::split;  // whether x and r enter separately
  enum Weight { BIAS, LN_X = (biases_apart ? 2 : 1) * gates, LN_R = LN_X + gates };
  static constexpr int row_scratch = (Plain::split ? 2 : 1) * gates;  // gradients of both parts of the pre-activations

  template <class Row>
  TT_INLINE static void forward_row(Row& row) {
    using V = typename Row::V;
    const auto of_x = Base::norm_of_x(row), of_r = Base::norm_of_r(row);
    for (int64_t j = 0; j < row.vectors(); ++j) {
      V next[1], a[Plain::saved + 1];
      const V old[1] = {row.last_state(j)};
      plain_forward(row, j, of_x, of_r, old, next, a);
      row.template set_next<H>(j, next[H]);
    }
  }

  template <class Row>
  TT_INLINE static void backward_row(Row& row) {
    using V = typename Row::V;
    const auto of_x = Base::norm_of_x(row), of_r = Base::norm_of_r(row);
    RowTerms<V> x_terms, r_terms;
    for (int64_t j = 0; j < row.vectors(); ++j) {
      V next[1], a[Plain::saved + 1], dn[1], ds[1], kept[1] = {}, dx[gates], dr[gates];
      const V old[1] = {row.last_state(j)};
      plain_forward(row, j, of_x, of_r, old, next, a);
      row.arriving(j, dn, kept);
      Plain::backward(a, old, next, dn, ds, dx, dr);
      row.set_states(j, dn, ds, kept);
      for (int g = 0; g < gates; ++g) {
        const V x = of_x(row.a(j, g)), r = of_r(row.a(j, gates + g));
        if (!Plain::split) dr[g] = dx[g];
        row.add_weight(j, BIAS + g, dx[g]);
        if (biases_apart) row.add_weight(j, BIAS + gates + g, dr[g]);
        row.add_weight(j, LN_X + g, dx[g] * x);
        row.add_weight(j, LN_R + g, dr[g] * r);
        x_terms.add(row, j, row.w(j, LN_X + g) * dx[g], x);
        r_terms.add(row, j, row.w(j, LN_R + g) * dr[g], r);
        row.set_scratch(j, g, dx[g]);
        if (Plain::split) row.set_scratch(j, gates + g, dr[g]);
      }
    }
    const auto x_means = x_terms.template means<gates>(row), r_means = r_terms.template means<gates>(row);
    for (int64_t j = 0; j < row.vectors(); ++j) {
      V dz[gates], dx[gates], dr[gates];
      for (int g = 0; g < gates; ++g) {
        dz[g] = row.scratch(j, g);
        const V d_recurrent = Plain::split ? row.scratch(j, gates + g) : dz[g];
        dx[g] = of_x.backward(x_means, row.w(j, LN_X + g) * dz[g], of_x(row.a(j, g)));
        dr[g] = of_r.backward(r_means, row.w(j, LN_R + g) * d_recurrent, of_r(row.a(j, gates + g)));
      }
      row.set_delta(j, dz, dx, dr);
    }
  }

 private:
  template <class Row, class Norm, class V>
  TT_INLINE static void plain_forward(const Row& row, int64_t j, const Norm& of_x, const Norm& of_r, const V* old, V* next,
                                      V* a) {
    V x[gates], r[gates];
    for (int g = 0; g < gates; ++g) {
      x[g] = row.w(j, LN_X + g) * of_x(row.a(j, g)) + row.w(j, BIAS + g);
      r[g] = row.w(j, LN_R + g) * of_r(row.a(j, gates + g));
      if (biases_apart) r[g] += row.w(j, BIAS + gates + g);
    }
    Plain::forward(x, r, old, next, a);
  }
};

}  // namespace throughtime::TT_ISA
