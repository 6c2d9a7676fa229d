// The definitions of the entries of every cell.
#pragma once

#include "../../cells/cells.hpp"
#include "backward.hpp"
#include "entries.hpp"

namespace throughtime::cuda {

template <class C, class S>
void Recurrent<C, S>::forward(const Forward<S>& p, const Call& call) {
  run_forward<C>(p, call);
}

template <class C, class S>
void Recurrent<C, S>::backward(const Backward<S>& p, const Call& call) {
  BackwardLoop<C, S>(p, call).run();
}

}  // namespace throughtime::cuda
