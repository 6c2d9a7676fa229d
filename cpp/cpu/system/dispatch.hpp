// The instruction sets compiled in, and the one in use.
#pragma once

#include <vector>

#include "../../kernels.hpp"

namespace throughtime {

struct Level {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();
};

const std::vector<Level>& levels();   // best first
const Level& level();                 // the first that this processor supports, or what THROUGHTIME_ISA names
bool has_avx512_bf16();               // whether it and this processor have bfloat16 products on vector registers
void assume_level(const char* name);  // whatever the processor says: for tests under an emulator, before anything else
const CellKernels& find_cell(const char* name);

}  // namespace throughtime
