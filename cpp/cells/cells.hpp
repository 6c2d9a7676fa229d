// The list of cells, for kernel tables, bindings and tests.
#pragma once

#include "cell.hpp"
#include "gru.hpp"
#include "gru_layer_norm.hpp"
#include "gru_original.hpp"
#include "lstm.hpp"
#include "lstm_layer_norm.hpp"
#include "rnn.hpp"
#include "rnn_layer_norm.hpp"

namespace throughtime::TT_ISA {

using Cells = List<RNN<Tanh>, RNN<Relu>, RNN<Sigmoid>, ZoneoutRNN<Tanh>, ZoneoutRNN<Relu>, ZoneoutRNN<Sigmoid>,
                   LayerNormRNN<Tanh>, LayerNormRNN<Relu>, LayerNormRNN<Sigmoid>, GRU, OriginalGRU, LayerNormGRU, LSTM,
                   PeepholeLSTM, ProjectedLSTM, LayerNormLSTM>;

}  // namespace throughtime::TT_ISA
