// h' = f(LN(W_ih x) + LN(W_hh h) + b_ih + b_hh), f = tanh, relu or sigmoid. Ba et al. 2016 (equation 4) normalise the sum.
#pragma once

#include "layer_norm.hpp"
#include "rnn.hpp"

namespace throughtime::TT_ISA {

struct AnyLayerNormRNN;

template <class Activation>
struct LayerNormRNN : LayerNorm<RNN<Activation>> {
  static constexpr const char* name = Activation::layer_norm_cell;
  using Shared = AnyLayerNormRNN;
  static constexpr int variant = Activation::number;
};

// All of them: the row's variant selects the activation, once per row, so that the time loops are compiled only once.
struct AnyLayerNormRNN : LayerNorm<RNN<Tanh>> {
  template <class Row>
  TT_INLINE static void forward_row(Row& row) {
    switch (row.variant()) {
      case Tanh::number:
        return LayerNorm<RNN<Tanh>>::forward_row(row);
      case Relu::number:
        return LayerNorm<RNN<Relu>>::forward_row(row);
      default:
        return LayerNorm<RNN<Sigmoid>>::forward_row(row);
    }
  }
  template <class Row>
  TT_INLINE static void backward_row(Row& row) {
    switch (row.variant()) {
      case Tanh::number:
        return LayerNorm<RNN<Tanh>>::backward_row(row);
      case Relu::number:
        return LayerNorm<RNN<Relu>>::backward_row(row);
      default:
        return LayerNorm<RNN<Sigmoid>>::backward_row(row);
    }
  }
};

}  // namespace throughtime::TT_ISA
