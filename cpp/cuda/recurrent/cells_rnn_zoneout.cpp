// Entries of these cells for every tensor type.
#include "entries_defined.hpp"

namespace throughtime::cuda {

template struct Recurrent<ZoneoutRNN<Tanh>, float>;
template struct Recurrent<ZoneoutRNN<Tanh>, BFloat16>;
template struct Recurrent<ZoneoutRNN<Tanh>, Float16>;
template struct Recurrent<ZoneoutRNN<Relu>, float>;
template struct Recurrent<ZoneoutRNN<Relu>, BFloat16>;
template struct Recurrent<ZoneoutRNN<Relu>, Float16>;
template struct Recurrent<ZoneoutRNN<Sigmoid>, float>;
template struct Recurrent<ZoneoutRNN<Sigmoid>, BFloat16>;
template struct Recurrent<ZoneoutRNN<Sigmoid>, Float16>;

}  // namespace throughtime::cuda
