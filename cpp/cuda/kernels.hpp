// The contract between the bindings and the CUDA backend. The problems are those of ../kernels.hpp, with all arrays on the device
// and in the tensors' type; what the cell saves is (T, B, saved, H).
#pragma once

#include "../kernels.hpp"
#include "runtime.hpp"

namespace throughtime::cuda {

// How the recurrence runs: by launches for every step, or as one persistent launch, whose blocks meet in a cluster or in memory.
enum class Mode : uint8_t { free, stepwise, cluster, grid };

struct Call {
  Queue queue;
  int terms = 3;  // bfloat16 numbers that a float32 factor of a product is split into; 1: all products are coarse
  // By force, for tests; 0: chosen, or as the device has them.
  Mode mode = Mode::free;
  int64_t chunk = 0;         // steps
  int multiprocessors = 0;   // that persistent kernels may use
  int64_t shared_bytes = 0;  // of a block of those
};

template <class S>
struct Entries {
  void (*forward)(const Forward<S>&, const Call&);
  void (*backward)(const Backward<S>&, const Call&);
};

struct CellKernels {
  const char* name;
  int gates, states, saved;
  bool projects;
  UnitWeight unit_weights[max_unit_weights];  // up to one without a name
  Entries<float> f32;
  Entries<BFloat16> bf16;
  Entries<Float16> f16;
};

extern const CellKernels* const cells;
extern const int cell_count;

}  // namespace throughtime::cuda
