// The settings of one call on a device.
#pragma once

#include "runtime.hpp"

namespace throughtime::cuda {

// How the recurrence runs: by launches for every step, or as one persistent launch, whose blocks meet in a cluster or in memory.
enum class Mode : uint8_t { free, stepwise, cluster, grid };

struct Call {
  Stream stream;
  int terms = 3;  // bfloat16 numbers that a float32 factor of a product is split into; 1: all products are coarse
  // Overrides for tests; 0: automatic.
  Mode mode = Mode::free;
  int64_t chunk = 0;         // steps
  int multiprocessors = 0;   // that persistent kernels may use
  int64_t shared_bytes = 0;  // of a block of those
};

}  // namespace throughtime::cuda
