// Floats as sums of the 16-bit numbers that the tensor cores multiply.
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

// The value as a sum of so many numbers, each the nearest to what is left; near the largest float that would be infinity, and the
// number is cut off instead. A NaN becomes one whose bits are not all ones, for those mark memory that is not yet written.
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
