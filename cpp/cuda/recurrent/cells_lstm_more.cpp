// Entries of these cells for every tensor type.
#include "entries_defined.hpp"

namespace throughtime::cuda {

template struct Recurrent<ProjectedLSTM, float>;
template struct Recurrent<ProjectedLSTM, BFloat16>;
template struct Recurrent<ProjectedLSTM, Float16>;
template struct Recurrent<LayerNormLSTM, float>;
template struct Recurrent<LayerNormLSTM, BFloat16>;
template struct Recurrent<LayerNormLSTM, Float16>;

}  // namespace throughtime::cuda
