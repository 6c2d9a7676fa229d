// Measures the peak FMA rate of one core, as the reference for kernel efficiency.
#pragma once

#include "../../number.hpp"

namespace throughtime::TT_ISA {

// Multiplies and adds in registers for `rounds` rounds; returns the number of floating-point operations.
inline double multiply_add(int64_t rounds) {
  constexpr int chains = 12;  // independent, because the latency is 4 cycles and two can start per cycle
  using V = Vec<float>;
  V value[chains];
#pragma GCC unroll 16
  for (int i = 0; i < chains; ++i) value[i] = splat<V>(float(3 + i));  // distinct, or the compiler would merge them
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) value[i] = value[i] * 0.5f + 1.0f;  // tends to 2: no chain may start there
  asm volatile("" ::"r"(&value) : "memory");                             // keeps the result alive
  return 2.0 * chains * lanes<float> * double(rounds);
}

}  // namespace throughtime::TT_ISA
