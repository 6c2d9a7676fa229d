// Activations: the value, and dy times the derivative, computed from the value, or from x if the value does not suffice.
#pragma once

#include "math.hpp"

namespace throughtime::TT_ISA {

struct Tanh {
  static constexpr int number = 0;
  static constexpr const char *name = "tanh", *cell = "rnn_tanh", *kept_cell = "rnn_tanh_kept",
                              *layer_norm_cell = "rnn_tanh_layer_norm";
  static constexpr bool of_argument = false;  // whether the derivative is computed from x
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
  static constexpr int number = 1;
  static constexpr const char *name = "relu", *cell = "rnn_relu", *kept_cell = "rnn_relu_kept",
                              *layer_norm_cell = "rnn_relu_layer_norm";
  static constexpr bool of_argument = false;
  template <class V>
  TT_INLINE static V value(V x) {
    return relu(x);
  }
  template <class V>
  TT_INLINE static V gradient(V y, V dy) {
    return y > 0 ? dy : V{};
  }
};

struct Sigmoid {
  static constexpr int number = 2;
  static constexpr const char *name = "sigmoid", *cell = "rnn_sigmoid", *kept_cell = "rnn_sigmoid_kept",
                              *layer_norm_cell = "rnn_sigmoid_layer_norm";
  static constexpr bool of_argument = false;
  template <class V>
  TT_INLINE static V value(V x) {
    return sigmoid(x);
  }
  template <class V>
  TT_INLINE static V gradient(V y, V dy) {
    return dy * y * (1 - y);
  }
};

// x Phi(x) with the exact normal distribution, not the tanh approximation; the derivative is Phi(x) + x phi(x).
struct Gelu {
  static constexpr const char* name = "gelu";
  static constexpr bool of_argument = true;
  template <class V>
  TT_INLINE static V value(V x) {
    V density, distribution;
    normal(x, density, distribution);
    return x * distribution;
  }
  template <class V>
  TT_INLINE static V gradient(V x, V dy) {
    V density, distribution;
    normal(x, density, distribution);
    return dy * (distribution + x * density);
  }
};

}  // namespace throughtime::TT_ISA
