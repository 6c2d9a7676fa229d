// Attention for one instruction set. Compiled once per level; TT_ISA is its name.
#include "attention.hpp"

namespace throughtime::TT_ISA {

template <class S>
constexpr AttentionEntries<S> attention_entries = {AttentionForwardLoop<S>::run, AttentionBackwardLoop<S>::run};

extern const AttentionKernels attention;
const AttentionKernels attention = {attention_entries<float>, attention_entries<double>};

}  // namespace throughtime::TT_ISA
