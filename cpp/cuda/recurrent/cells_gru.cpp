// Entries of these cells for every tensor type.
#include "entries_defined.hpp"

namespace throughtime::cuda {

template struct Recurrent<GRU, float>;
template struct Recurrent<GRU, BFloat16>;
template struct Recurrent<GRU, Float16>;
template struct Recurrent<OriginalGRU, float>;
template struct Recurrent<OriginalGRU, BFloat16>;
template struct Recurrent<OriginalGRU, Float16>;

}  // namespace throughtime::cuda
