// Entries of these cells for every tensor type.
#include "entries_defined.hpp"

namespace throughtime::cuda {

template struct Recurrent<LSTM, float>;
template struct Recurrent<LSTM, BFloat16>;
template struct Recurrent<LSTM, Float16>;
template struct Recurrent<PeepholeLSTM, float>;
template struct Recurrent<PeepholeLSTM, BFloat16>;
template struct Recurrent<PeepholeLSTM, Float16>;

}  // namespace throughtime::cuda
