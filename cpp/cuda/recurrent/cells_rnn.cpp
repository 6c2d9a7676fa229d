// Entries of these cells for every tensor type.
#include "entries_defined.hpp"

namespace throughtime::cuda {

template struct Recurrent<RNN<Tanh>, float>;
template struct Recurrent<RNN<Tanh>, BFloat16>;
template struct Recurrent<RNN<Tanh>, Float16>;
template struct Recurrent<RNN<Relu>, float>;
template struct Recurrent<RNN<Relu>, BFloat16>;
template struct Recurrent<RNN<Relu>, Float16>;
template struct Recurrent<RNN<Sigmoid>, float>;
template struct Recurrent<RNN<Sigmoid>, BFloat16>;
template struct Recurrent<RNN<Sigmoid>, Float16>;

}  // namespace throughtime::cuda
