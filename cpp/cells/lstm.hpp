// i, f, o = sigmoid(x + r)    g = tanh(x_g + r_g)    c' = f c + i g    h' = o tanh(c')
// Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; PyTorch's gate order. Peephole (Gers and
// Schmidhuber 2000): w_ci c in i, w_cf c in f, w_co c' in o. Projected (Sak et al. 2014): m = o tanh(c'), h' = W_hr m.
// The backward recomputes c', because zoneout may have kept the old c as the state after.
#pragma once

#include "../math.hpp"
#include "cell.hpp"

namespace throughtime::TT_ISA {

struct LSTM : OnePhase {
  static constexpr const char* name = "lstm";
  enum Gate { I, F, G, O, gates };
  enum State { H, C, states };
  // tanh(c') is recomputed: saves a fifth of the memory for about 1 % of the time.
  static constexpr int recurrent = gates, saved = gates;
  static constexpr bool split = false;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, V* next, V* a) {
    a[I] = sigmoid(x[I] + r[I]);
    a[F] = sigmoid(x[F] + r[F]);
    a[G] = tanh(x[G] + r[G]);
    a[O] = sigmoid(x[O] + r[O]);
    next[C] = after(a, s);
    next[H] = a[O] * tanh(next[C]);
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, const V*, V* dn, V* ds, V* dx, V*) {
    const V y = tanh(after(a, s));
    dn[C] = dn[C] + dn[H] * a[O] * (1 - y * y);
    dx[O] = dn[H] * y * (a[O] * (1 - a[O]));
    backward_of_after(a, s, dn, ds, dx);
    ds[H] = V{};
  }

  // c'
  template <class V>
  TT_INLINE static V after(const V* a, const V* s) {
    return a[F] * s[C] + a[I] * a[G];
  }
  template <class V>
  TT_INLINE static void backward_of_after(const V* a, const V* s, const V* dn, V* ds, V* dx) {
    dx[I] = dn[C] * a[G] * (a[I] * (1 - a[I]));
    dx[F] = dn[C] * s[C] * (a[F] * (1 - a[F]));
    dx[G] = dn[C] * a[I] * (1 - a[G] * a[G]);
    ds[C] = dn[C] * a[F];
  }
};

struct PeepholeLSTM : LSTM {
  static constexpr const char* name = "lstm_peephole";
  static constexpr UnitParameter unit_parameters[max_unit_parameters] = {{"weight_ci", 1}, {"weight_cf", 1}, {"weight_co", 1}};
  enum Weight { CI, CF, CO };

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, const V* w, V* next, V* a) {
    a[I] = sigmoid(x[I] + r[I] + w[CI] * s[C]);
    a[F] = sigmoid(x[F] + r[F] + w[CF] * s[C]);
    a[G] = tanh(x[G] + r[G]);
    next[C] = after(a, s);
    a[O] = sigmoid(x[O] + r[O] + w[CO] * next[C]);
    next[H] = a[O] * tanh(next[C]);
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, const V*, const V* w, V* dn, V* ds, V* dx, V*, V* dw) {
    const V c = after(a, s), y = tanh(c);
    dx[O] = dn[H] * y * (a[O] * (1 - a[O]));
    dn[C] = dn[C] + dn[H] * a[O] * (1 - y * y) + dx[O] * w[CO];
    backward_of_after(a, s, dn, ds, dx);
    ds[C] += dx[I] * w[CI] + dx[F] * w[CF];
    ds[H] = V{};
    dw[CI] = dx[I] * s[C];
    dw[CF] = dx[F] * s[C];
    dw[CO] = dx[O] * c;
  }
};

struct ProjectedLSTM : LSTM {
  static constexpr const char* name = "lstm_projected";
  static constexpr Phases phases = Phases::two_products;
  static constexpr bool projects = true;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, V* next, V* a, V* m) {
    LSTM::forward(x, r, s, next, a);
    *m = next[H];
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, V* dn, const V* dm, V* ds, V* dx, V* dr, V* m) {
    *m = a[O] * tanh(after(a, s));
    dn[H] = *dm;
    LSTM::backward(a, s, s, dn, ds, dx, dr);
  }
};

}  // namespace throughtime::TT_ISA
