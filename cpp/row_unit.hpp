// Powers of two that scale a row before it is measured, if its numbers are finite but their sums or squares would overflow or
// lose digits to underflow. Scaling by them rounds nothing. Squares of float32 overflow from 1.8e19 on.
#pragma once

namespace throughtime::TT_ISA {

// The squares of a row times `large` can be summed. So can those of a row times `small` if its reciprocal deviation is above
// `most_rstd`; unscaled, underflow may cost its squares more than rounding does.
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
