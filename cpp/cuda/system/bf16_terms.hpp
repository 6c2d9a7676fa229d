// Splits floats into sums of the 16-bit numbers that the tensor cores multiply.
#pragma once

#include "launch.hpp"

namespace throughtime::cuda {

// The type that the tensor cores multiply.
template <class S>
struct FactorOf {
  using type = BFloat16;
};
template <>
struct FactorOf<Float16> {
  using type = Float16;
};
template <class S>
using Factor = typename FactorOf<S>::type;

// Writes the value as a sum of `terms` numbers, each the nearest to the remainder. A bfloat16 that would round to infinity is
// truncated instead, if more terms follow. A NaN becomes one whose bits are not all ones, which mark unwritten memory.
template <class S, int terms>
TT_DEVICE void split(float value, Factor<S> (&parts)[terms]) {
  for (int i = 0; i < terms; ++i) {
    from_float(value, parts[i]);
    if (i + 1 == terms) break;
    if ((parts[i].bits & 0x7fff) == 0x7f80) parts[i] = {uint16_t(bits_of(value) >> 16)};
    value -= to_float(parts[i]);
  }
}

}  // namespace throughtime::cuda
