// The entries of a cell for a tensor type. cells_*.cpp instantiate them, a few cells each, so that they compile in parallel.
#pragma once

#include "kernels.hpp"

namespace throughtime::cuda {

template <class C, class S>
struct Recurrent {
  static void forward(const Forward<S>&, const Call&);
  static void backward(const Backward<S>&, const Call&);
};

}  // namespace throughtime::cuda
