// Embedding, losses, optimisers and clipping for one instruction set. Compiled once per level; TT_ISA is its name.
#include "embedding.hpp"
#include "losses.hpp"
#include "optimiser.hpp"

namespace throughtime::TT_ISA {

template <class S>
constexpr TrainingEntries<S> training_entries = {embedding_forward<S>, embedding_backward<S>, cross_entropy<S>, squared_error<S>};

extern const TrainingKernels training;
const TrainingKernels training = {training_entries<float>, training_entries<double>, sgd, adam, norm, scale};

}  // namespace throughtime::TT_ISA
