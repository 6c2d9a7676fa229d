// The entries of a cell in a tensor type. They are instantiated in cells_*.cpp, a few cells in each, so that compilers work side
// by side.
#pragma once

#include "kernels.hpp"

namespace throughtime::cuda {

template <class C, class S>
struct Recurrent {
  static void forward(const Forward<S>&, const Call&);
  static void backward(const Backward<S>&, const Call&);
};

}  // namespace throughtime::cuda
