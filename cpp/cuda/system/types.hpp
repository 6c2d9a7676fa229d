// The 16-bit floats of tensors, as bits.
#pragma once

#include <stdint.h>

namespace throughtime::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace throughtime::cuda
