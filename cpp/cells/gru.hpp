// r = sigmoid(x_r + r_r)    z = sigmoid(x_z + r_z)    n = tanh(x_n + r r_n)    h' = (1 - z) n + z h
// Cho et al. 2014, with the reset after the product, as in cuDNN and PyTorch.
#pragma once

#include "../math.hpp"
#include "cell.hpp"

namespace throughtime::TT_ISA {

struct GRU : OnePhase {
  static constexpr const char* name = "gru";
  enum Gate { R, Z, N, gates };
  enum State { H, states };
  static constexpr int recurrent = gates, saved = gates + 1;  // the gates, and r_n, which the reset gate multiplies
  static constexpr bool split = true;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, V* next, V* a) {
    a[R] = sigmoid(x[R] + r[R]);
    a[Z] = sigmoid(x[Z] + r[Z]);
    a[N] = tanh(x[N] + a[R] * r[N]);
    a[gates] = r[N];
    next[H] = (1 - a[Z]) * a[N] + a[Z] * s[H];
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, const V*, V* dn, V* ds, V* dx, V* dr) {
    dx[N] = dn[H] * (1 - a[Z]) * (1 - a[N] * a[N]);
    dx[Z] = dn[H] * (s[H] - a[N]) * (a[Z] * (1 - a[Z]));
    dx[R] = dx[N] * a[gates] * (a[R] * (1 - a[R]));
    dr[R] = dx[R];
    dr[Z] = dx[Z];
    dr[N] = dx[N] * a[R];
    ds[H] = dn[H] * a[Z];
  }
};

}  // namespace throughtime::TT_ISA
