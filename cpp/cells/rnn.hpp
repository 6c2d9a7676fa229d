// h' = f(x + r), f = tanh or relu (Elman 1990)
#pragma once

#include "../activations.hpp"

namespace throughtime::TT_ISA {

template <class Activation>
struct RNN {
  static constexpr const char* name = Activation::cell;
  enum Gate { A, gates };
  enum State { H, states };
  static constexpr int saved = 0;  // the state after is all that the backward needs
  static constexpr bool split = false;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V*, V* next, V*) {
    next[H] = Activation::value(x[A] + r[A]);
  }
  template <class V>
  TT_INLINE static void backward(const V*, const V*, const V* next, V* dn, V* ds, V* dx, V*) {
    dx[A] = Activation::gradient(next[H], dn[H]);
    ds[H] = V{};
  }
};

}  // namespace throughtime::TT_ISA
