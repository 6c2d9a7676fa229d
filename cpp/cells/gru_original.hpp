// r = sigmoid(x_r + r_r)    z = sigmoid(x_z + r_z)    m = r h    n = tanh(x_n + W_hn m + b_hn)    h' = (1 - z) n + z h
// Cho et al. 2014 as published: the reset comes before the product, which makes it a second one.
#pragma once

#include "../math.hpp"
#include "cell.hpp"

namespace throughtime::TT_ISA {

struct OriginalGRU : OnePhase {
  static constexpr const char* name = "gru_original";
  enum Gate { R, Z, N, gates };
  enum State { H, states };
  static constexpr int recurrent = N, saved = gates;
  static constexpr bool split = true;
  static constexpr Phases phases = Phases::two_products;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, V*, V* a, V* m) {
    a[R] = sigmoid(x[R] + r[R]);
    a[Z] = sigmoid(x[Z] + r[Z]);
    *m = a[R] * s[H];
  }
  template <class V>
  TT_INLINE static void finish(const V* x, const V* r, const V* s, V* next, V* a) {
    a[N] = tanh(x[N] + *r);
    next[H] = (1 - a[Z]) * a[N] + a[Z] * s[H];
  }
  template <class V>
  TT_INLINE static V second_product_delta(const V* a, const V*, V dh) {
    return dh * (1 - a[Z]) * (1 - a[N] * a[N]);
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, V* dn, const V* dm, V* ds, V* dx, V* dr, V* m) {
    *m = a[R] * s[H];
    dx[N] = second_product_delta(a, s, dn[H]);
    dx[Z] = dn[H] * (s[H] - a[N]) * (a[Z] * (1 - a[Z]));
    dx[R] = *dm * s[H] * (a[R] * (1 - a[R]));
    dr[R] = dx[R];
    dr[Z] = dx[Z];
    ds[H] = dn[H] * a[Z] + *dm * a[R];
  }
};

}  // namespace throughtime::TT_ISA
