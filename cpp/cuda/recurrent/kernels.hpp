// The contract between the bindings and the CUDA backend. The problems are those of cpp/kernels.hpp, with all arrays on the
// device and in the tensors' type; the cell's saved values are (T, B, saved, H).
#pragma once

#include "../../kernels.hpp"
#include "../system/call.hpp"

namespace throughtime::cuda {

template <class S>
struct Entries {
  void (*forward)(const Forward<S>&, const Call&);
  void (*backward)(const Backward<S>&, const Call&);
};

struct CellKernels {
  const char* name;
  int gates, states, saved;
  bool projects;
  UnitParameter unit_parameters[max_unit_parameters];  // ends before the first without a name
  Entries<float> f32;
  Entries<BFloat16> bf16;
  Entries<Float16> f16;
};

extern const CellKernels* const cells;
extern const int cell_count;

}  // namespace throughtime::cuda
