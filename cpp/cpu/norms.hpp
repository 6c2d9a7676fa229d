// The norm of what one step adds to a weight's gradient, without forming it: ||d^T x||_F^2 = <d d^T, x x^T>, two Gram
// matrices of the batch. Rows are scaled by a power of two and everything is float64, so that no square leaves the range.
#pragma once

#include "pack.hpp"

namespace throughtime::TT_ISA {

template <class S>
class StepNorms {
 public:
  // Doubles of scratch that one thread needs.
  static int64_t room(int64_t B, int64_t delta_size, int64_t I, int64_t H) {
    const int64_t widest = delta_size > I ? delta_size : I;
    return 2 * B * B + B * (widest > H ? widest : H);
  }

  StepNorms(double* scratch, int64_t B) : gram_delta(scratch), gram_operand(scratch + B * B), scaled(scratch + 2 * B * B) {}

  double of_weight(const S* const* delta, int64_t delta_size, const S* const* operand, int64_t size, int64_t count) {
    const double scale_delta = gram(delta, delta_size, count, gram_delta);
    const double scale_operand = gram(operand, size, count, gram_operand);
    double sum = 0;
    for (int64_t i = 0; i < count * count; ++i) sum += gram_delta[i] * gram_operand[i];
    return __builtin_sqrt(sum > 0 || sum != sum ? sum : 0) * scale_delta * scale_operand;  // rounding may leave it below zero
  }

  double of_bias(const S* const* delta, int64_t size, int64_t count) {
    const double scale = rescale(delta, size, count);
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) {
      double column = 0;
      for (int64_t b = 0; b < count; ++b) column += scaled[b * size + i];
      sum += column * column;
    }
    return __builtin_sqrt(sum) * scale;
  }

 private:
  // out[b][c] = <rows[b], rows[c]> / scale^2; returns the scale.
  double gram(const S* const* rows, int64_t size, int64_t count, double* out) {
    using V = Vec<double>;
    const double scale = rescale(rows, size, count);
    for (int64_t b = 0; b < count; ++b)
      for (int64_t c = 0; c <= b; ++c) {
        V sum[4] = {};
        const double *left = scaled + b * size, *right = scaled + c * size;
        int64_t k = 0;
        for (; k + 4 * lanes<double> <= size; k += 4 * lanes<double>)
          for (int i = 0; i < 4; ++i) sum[i] += load<V>(left + k + i * lanes<double>) * load<V>(right + k + i * lanes<double>);
        for (; k < size; k += lanes<double>) sum[0] += load_some<V>(left + k, size - k) * load_some<V>(right + k, size - k);
        const V total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        double value = 0;
        for (int lane = 0; lane < lanes<double>; ++lane) value += total[lane];
        out[b * count + c] = out[c * count + b] = value;
      }
    return scale;
  }

  // The rows divided by the power of two below their largest entry, in `scaled`; returns that power, or 1 for zeros.
  double rescale(const S* const* rows, int64_t size, int64_t count) {
    double largest = 0;
    for (int64_t b = 0; b < count; ++b)
      for (int64_t i = 0; i < size; ++i) {
        const double value = __builtin_fabs(double(rows[b][i]));
        largest = value > largest ? value : largest;
      }
    uint64_t bits;
    __builtin_memcpy(&bits, &largest, sizeof bits);
    bits &= uint64_t(0x7ff) << 52;  // the exponent alone: a power of two
    double scale;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    if (!(scale > 0 && scale <= __DBL_MAX__ / 4)) scale = 1;  // zeros, or not finite: nothing to gain
    const double inverse = 1 / scale;
    for (int64_t b = 0; b < count; ++b)
      for (int64_t i = 0; i < size; ++i) scaled[b * size + i] = double(rows[b][i]) * inverse;
    return scale;
  }

  double *gram_delta, *gram_operand, *scaled;
};

}  // namespace throughtime::TT_ISA
