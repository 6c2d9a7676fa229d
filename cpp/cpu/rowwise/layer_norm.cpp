// LayerNorm for one instruction set. Compiled once per level; TT_ISA is its name.
#include "layer_norm.hpp"

namespace throughtime::TT_ISA {

template <class S>
constexpr LayerNormEntries<S> layer_norm_entries = {LayerNormForwardRows<S>::run, LayerNormBackwardRows<S>::run};

extern const LayerNormKernels layer_norm;
const LayerNormKernels layer_norm = {layer_norm_entries<float>, layer_norm_entries<double>};

}  // namespace throughtime::TT_ISA
