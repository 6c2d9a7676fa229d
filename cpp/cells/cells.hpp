// The list of cells: kernel table, bindings and tests iterate it.
#pragma once

#include "cell.hpp"
#include "gru.hpp"
#include "gru_original.hpp"
#include "lstm.hpp"
#include "lstm_layer_norm.hpp"
#include "rnn.hpp"

namespace throughtime::TT_ISA {

using Cells =
    List<RNN<Tanh>, RNN<Relu>, KeptRNN<Tanh>, KeptRNN<Relu>, GRU, OriginalGRU, LSTM, PeepholeLSTM, ProjectedLSTM, LayerNormLSTM>;

}  // namespace throughtime::TT_ISA
