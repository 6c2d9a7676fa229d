// What a row is multiplied by before it is measured, where its numbers are finite but their sums or squares leave the range or
// lose digits below it: powers of two, which round nothing. Squares of float32 overflow from 1.8e19 on.
#pragma once

namespace throughtime::TT_ISA {

// A row times `large` has squares that may be added, and so has a row times `small` whose reciprocal deviation is above
// `most_rstd`; from such a row's own squares underflow may take more than rounding does.
template <class S>
struct RowUnit;

template <>
struct RowUnit<float> {
  static constexpr float large = 0x1p-80f, small = 0x1p80f, most_rstd = 0x1p48f, least = __FLT_MIN__, most = __FLT_MAX__;
};

template <>
struct RowUnit<double> {
  static constexpr double large = 0x1p-560, small = 0x1p560, most_rstd = 0x1p450, least = __DBL_MIN__, most = __DBL_MAX__;
};

}  // namespace throughtime::TT_ISA
