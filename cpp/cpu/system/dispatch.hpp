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
const Level& level();                 // the first that this processor supports, or the one that THROUGHTIME_ISA names
bool has_avx512_bf16();               // whether level() and this processor have bfloat16 products on vector registers
void assume_level(const char* name);  // skips the check of the processor: for tests under an emulator, before anything else
const CellKernels& find_cell(const char* name);

}  // namespace throughtime
