// Steps as one persistent launch, for cells of one phase whose recurrent weights fit on the chip. False: they do not, or
// something is asked for that the persistent kernels do not have; nothing was done then.
#pragma once

#include "recurrence.hpp"

namespace throughtime::cuda {

template <class C, class S>
bool persistent_forward(const ForwardSteps<S>&, const Call&) {
  return false;
}

template <class C, class S>
bool persistent_backward(const BackwardSteps<S>&, const Call&) {
  return false;
}

}  // namespace throughtime::cuda
