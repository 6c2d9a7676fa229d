// The norm of one step's contribution to a weight's gradient, without forming it: ||d^T x||_F^2 = <d d^T, x x^T>, two Gram
// matrices of the batch. If the batch is so large that the gradient itself is smaller, the norm is summed row by row of the
// gradient. Rows are scaled by a power of two and all arithmetic is float64, so that no square leaves the range.
#pragma once

#include "../../step/norms.hpp"
#include "../engine/pack.hpp"
#include "../system/team.hpp"

namespace throughtime::TT_ISA {

template <class S>
class StepNorms {
 public:
  // Sizes of one thread's scratch, in doubles.
  struct Scratch {
    int64_t grams, rows, other, column;

    Scratch(int64_t B, int64_t delta_size, int64_t I, int64_t H) {
      const int64_t size = I > H ? I : H, worth = delta_size * size / (delta_size + size) + 1;
      grams = B < worth ? B * B : worth * worth;
      rows = B * (delta_size > size ? delta_size : size);
      other = B * size;
      column = size;
    }
    int64_t total() const { return 2 * grams + rows + other + column; }
  };

  StepNorms(double* scratch, const Scratch& sizes, Poll& poll)
      : poll(poll),
        gram_delta(scratch),
        gram_operand(gram_delta + sizes.grams),
        scaled(gram_operand + sizes.grams),
        other(scaled + sizes.rows),
        column(other + sizes.other) {}

  // `dropped(g)`: the bytes of row g, nonzero for numbers left out of the norm, or null.
  template <class Dropped>
  double of_weight(const S* const* delta, int64_t delta_size, const S* const* operand, int64_t size, int64_t count,
                   const Dropped& dropped) {
    if (norm_of_elements(count, delta_size, size, dropped(0) != nullptr))
      return of_product(delta, delta_size, operand, size, count, dropped);
    const double scale_delta = gram(delta, delta_size, count, gram_delta);
    const double scale_operand = gram(operand, size, count, gram_operand);
    double sum = 0;
    for (int64_t i = 0; i < count * count; ++i) sum += gram_delta[i] * gram_operand[i];
    return __builtin_sqrt(not_negative(sum)) * scale_delta * scale_operand;
  }

  TT_PHASE double of_bias(const S* const* delta, int64_t size, int64_t count) {
    const double scale = rescale(delta, size, count, scaled);
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) {
      double total = 0;
      for (int64_t b = 0; b < count; ++b) total += scaled[b * size + i];
      sum += total * total;
    }
    return __builtin_sqrt(sum) * scale;
  }

 private:
  // The norm of d^T x, formed one row at a time.
  template <class Dropped>
  double of_product(const S* const* delta, int64_t delta_size, const S* const* operand, int64_t size, int64_t count,
                    const Dropped& dropped) {
    const double scale_delta = rescale(delta, delta_size, count, scaled), scale_operand = rescale(operand, size, count, other);
    double sum = 0;
    for (int64_t g = 0; g < delta_size && poll.goes_on(count * size); ++g) {
      for (int64_t i = 0; i < size; ++i) column[i] = 0;
      for (int64_t b = 0; b < count; ++b) {
        const double weight = scaled[b * delta_size + g];
        for (int64_t i = 0; i < size; ++i) column[i] += weight * other[b * size + i];
      }
      const uint8_t* out = dropped(g);
      for (int64_t i = 0; i < size; ++i) sum += out && out[i] ? 0 : column[i] * column[i];
    }
    return __builtin_sqrt(sum) * scale_delta * scale_operand;
  }

  // out[b][c] = <rows[b], rows[c]> / scale^2; returns the scale.
  TT_PHASE double gram(const S* const* rows, int64_t size, int64_t count, double* out) {
    using V = Vec<double>;
    const double scale = rescale(rows, size, count, scaled);
    for (int64_t b = 0; b < count && poll.goes_on(b * size); ++b)
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

  // Divides the rows by the power of two below their largest entry, into `into`. Returns that power, or 1 for zeros.
  TT_PHASE double rescale(const S* const* rows, int64_t size, int64_t count, double* into) {
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
      for (int64_t i = 0; i < size; ++i) into[b * size + i] = double(rows[b][i]) * inverse;
    return scale;
  }

  Poll& poll;
  double *gram_delta, *gram_operand;  // (B, B)
  double *scaled, *other;             // (B, features): delta, or the rows of a Gram product; the operand
  double* column;                     // (features)
};

}  // namespace throughtime::TT_ISA
