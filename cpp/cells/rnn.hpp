// h' = f(x + r), f = tanh or relu (Elman 1990)
#pragma once

#include "../math.hpp"

namespace throughtime::TT_ISA {

struct Tanh {
  static constexpr const char* name = "rnn_tanh";
  template <class V>
  TT_INLINE static V value(V x) {
    return tanh(x);
  }
  template <class V>
  TT_INLINE static V gradient(V y, V dy) {
    return dy * (1 - y * y);
  }
};

struct Relu {
  static constexpr const char* name = "rnn_relu";
  template <class V>
  TT_INLINE static V value(V x) {
    return relu(x);
  }
  template <class V>
  TT_INLINE static V gradient(V y, V dy) {
    return y > 0 ? dy : V{};
  }
};

template <class Activation>
struct RNN {
  static constexpr const char* name = Activation::name;
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
