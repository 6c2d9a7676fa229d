// Entries of these cells in every tensor type.
#include "recurrent_loops.hpp"

namespace throughtime::cuda {

template struct Recurrent<KeptRNN<Tanh>, float>;
template struct Recurrent<KeptRNN<Tanh>, BFloat16>;
template struct Recurrent<KeptRNN<Tanh>, Float16>;
template struct Recurrent<KeptRNN<Relu>, float>;
template struct Recurrent<KeptRNN<Relu>, BFloat16>;
template struct Recurrent<KeptRNN<Relu>, Float16>;
template struct Recurrent<KeptRNN<Sigmoid>, float>;
template struct Recurrent<KeptRNN<Sigmoid>, BFloat16>;
template struct Recurrent<KeptRNN<Sigmoid>, Float16>;

}  // namespace throughtime::cuda
