// Entries of these cells for every tensor type.
#include "entries_defined.hpp"

namespace throughtime::cuda {

template struct Recurrent<LayerNormGRU, float>;
template struct Recurrent<LayerNormGRU, BFloat16>;
template struct Recurrent<LayerNormGRU, Float16>;
template struct Recurrent<LayerNormRNN<Tanh>, float>;
template struct Recurrent<LayerNormRNN<Tanh>, BFloat16>;
template struct Recurrent<LayerNormRNN<Tanh>, Float16>;
template struct Recurrent<LayerNormRNN<Relu>, float>;
template struct Recurrent<LayerNormRNN<Relu>, BFloat16>;
template struct Recurrent<LayerNormRNN<Relu>, Float16>;
template struct Recurrent<LayerNormRNN<Sigmoid>, float>;
template struct Recurrent<LayerNormRNN<Sigmoid>, BFloat16>;
template struct Recurrent<LayerNormRNN<Sigmoid>, Float16>;

}  // namespace throughtime::cuda
