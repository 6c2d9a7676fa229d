// i, f, o = sigmoid(x + r)    g = tanh(x_g + r_g)    c' = f c + i g    h' = o tanh(c')
// Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; PyTorch's gate order.
#pragma once

#include "../math.hpp"

namespace throughtime::TT_ISA {

struct LSTM {
  static constexpr const char* name = "lstm";
  enum Gate { I, F, G, O, gates };
  enum State { H, C, states };
  static constexpr int saved = gates;  // tanh(c') is computed again: a fifth of the memory for about 1 % of the time
  static constexpr bool split = false;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, V* next, V* a) {
    a[I] = sigmoid(x[I] + r[I]);
    a[F] = sigmoid(x[F] + r[F]);
    a[G] = tanh(x[G] + r[G]);
    a[O] = sigmoid(x[O] + r[O]);
    next[C] = a[F] * s[C] + a[I] * a[G];
    next[H] = a[O] * tanh(next[C]);
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, const V* next, V* dn, V* ds, V* dx, V*) {
    const V y = tanh(next[C]);
    dn[C] = dn[C] + dn[H] * a[O] * (1 - y * y);
    dx[I] = dn[C] * a[G] * (a[I] * (1 - a[I]));
    dx[F] = dn[C] * s[C] * (a[F] * (1 - a[F]));
    dx[G] = dn[C] * a[I] * (1 - a[G] * a[G]);
    dx[O] = dn[H] * y * (a[O] * (1 - a[O]));
    ds[C] = dn[C] * a[F];
    ds[H] = V{};
  }
};

}  // namespace throughtime::TT_ISA
