// kernels.cpp with one cell of each form instead of all: for tests of an instruction set's code that would take minutes.
#define Cells AllCells
#include "cells/cells.hpp"
#undef Cells

namespace throughtime::TT_ISA {
using Cells = List<LSTM, OriginalGRU, LayerNormRNN<Tanh>>;
}

#include "cpu/recurrent/kernels.cpp"
