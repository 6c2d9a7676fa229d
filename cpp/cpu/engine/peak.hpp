// What the multipliers of one core can do at most, to which the speed of the kernels is held.
#pragma once

#include "../../number.hpp"

namespace throughtime::TT_ISA {

// Multiplies and adds in registers, for so many rounds; returns the number of floating-point operations.
inline double multiply_add(int64_t rounds) {
  constexpr int chains = 12;  // independent, since a result is there after 4 cycles and two may start in each
  using V = Vec<float>;
  V value[chains];
#pragma GCC unroll 16
  for (int i = 0; i < chains; ++i) value[i] = splat<V>(float(3 + i));  // unlike, or the compiler would make them one
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) value[i] = value[i] * 0.5f + 1.0f;  // tends to 2: no start may be there
  asm volatile("" ::"r"(&value) : "memory");                             // the result is needed
  return 2.0 * chains * lanes<float> * double(rounds);
}

}  // namespace throughtime::TT_ISA
