// The settings of one call on a device.
#pragma once

#include "runtime.hpp"

namespace throughtime::cuda {

// How the recurrence runs: with launches for every step, or as one persistent launch whose blocks exchange values within a
// cluster or through memory.
enum class Mode : uint8_t { free, stepwise, cluster, grid };

struct Call {
  Stream stream;
  int terms = 3;  // bfloat16 numbers per float32 factor of a product; 1: all products are coarse
  // Overrides for tests; 0: automatic.
  Mode mode = Mode::free;
  int64_t chunk = 0;         // steps
  int multiprocessors = 0;   // for persistent kernels
  int64_t shared_bytes = 0;  // per block of these
};

}  // namespace throughtime::cuda
