// r, z = sigmoid(x + r)    n = tanh(x_n + r r_n)    h' = (1 - z) n + z h    with x = LN(W_ih x) + b_ih, r = LN(W_hh h) + b_hh,
// each LN over all gates. Ba et al. 2016 (equations 23 to 25) normalise n's products separately from those of r and z.
#pragma once

#include "gru.hpp"
#include "layer_norm.hpp"

namespace throughtime::TT_ISA {

struct LayerNormGRU : LayerNorm<GRU> {
  static constexpr const char* name = "gru_layer_norm";
};

}  // namespace throughtime::TT_ISA
