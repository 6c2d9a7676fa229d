// The list of cells: kernel table, bindings and tests iterate it.
#pragma once

#include "cell.hpp"
#include "gru.hpp"
#include "lstm.hpp"
#include "rnn.hpp"

namespace throughtime::TT_ISA {

using Cells = List<RNN<Tanh>, RNN<Relu>, GRU, LSTM>;

}  // namespace throughtime::TT_ISA
