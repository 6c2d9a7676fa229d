// The norm of each step's contribution to a weight's gradient, from two Gram matrices of the batch:
// ||d^T x||_F^2 = <d d^T, x x^T>; or element by element, if the batch is so large that the contribution is smaller, or if some
// of its elements are dropped. One block per step, in float64, whose range holds products of four float32 numbers.
#pragma once

#include "../../step/norms.hpp"
#include "../system/grid.hpp"
#include "../system/reduce.hpp"

namespace throughtime::cuda {

template <class S>
struct WeightNorms {
  int64_t B, m, n;   // sequences; columns of delta and of the operand
  const S* delta;    // (steps, B, m)
  const S* operand;  // (steps, B, n), rows `stride` apart; rows are zero if those of delta are
  int64_t stride;
  const uint8_t* dropped;  // (m, n), or null: true for elements that are left out
  double* norms;           // (steps)
  bool joins;              // combines the norm with that in `norms`

  TT_DEVICE const S* delta_row(int64_t b) const { return delta + (block() * B + b) * m; }
  TT_DEVICE const S* operand_row(int64_t b) const { return operand + (block() * B + b) * stride; }

  // One warp per pair of sequences.
  TT_DEVICE double of_grams() const {
    double sum = 0;
    for (int64_t pair = thread() / warp_size; pair < B * B; pair += threads() / warp_size) {
      const int64_t a = pair / B, b = pair % B;
      if (b > a) continue;
      const double part = dot(delta_row(a), delta_row(b), m) * dot(operand_row(a), operand_row(b), n);
      if (thread() % warp_size == 0) sum += a == b ? part : 2 * part;
    }
    return sum;
  }
  TT_DEVICE static double dot(const S* a, const S* b, int64_t size) {
    double sum = 0;
    for (int64_t k = thread() % warp_size; k < size; k += warp_size) sum += double(to_float(a[k])) * double(to_float(b[k]));
    return over_warp(sum, Add());
  }

  TT_DEVICE double of_elements() const {
    double sum = 0;
    for (int64_t at = thread(); at < m * n; at += threads()) {
      if (dropped && dropped[at]) continue;
      double element = 0;
      for (int64_t b = 0; b < B; ++b)
        element += double(to_float(delta_row(b)[at / n])) * double(to_float(operand_row(b)[at % n]));
      sum += element * element;
    }
    return sum;
  }
};

TT_DEVICE double root(double square) { return __builtin_sqrt(not_negative(square)); }

template <class S>
TT_KERNEL void weight_norms(WeightNorms<S> of) {
  const double sum = norm_of_elements(of.B, of.m, of.n, of.dropped != nullptr) ? of.of_elements() : of.of_grams();
  double square = over_block(sum, reinterpret_cast<double*>(shared_memory()), Add());
  if (thread() != 0) return;
  double& norm = of.norms[block()];
  if (of.joins) square = not_negative(square) + norm * norm;
  norm = root(square);
}

// The same for a bias: rows (steps, B, columns), `stride` apart, are summed over sequences.
template <class From>
TT_KERNEL void bias_norms(const From* rows, int64_t stride, int64_t B, int64_t columns, double* norms, bool joins) {
  double sum = 0;
  for (int64_t column = thread(); column < columns; column += threads()) {
    double total = 0;
    for (int64_t b = 0; b < B; ++b) total += double(to_float(rows[(block() * B + b) * stride + column]));
    sum += total * total;
  }
  const double square = over_block(sum, reinterpret_cast<double*>(shared_memory()), Add());
  if (thread() == 0) norms[block()] = root(joins ? square + norms[block()] * norms[block()] : square);
}

inline Launch over_steps(int64_t steps, int64_t columns) {
  const int threads = threads_for(columns);
  return {int(steps), 1, threads, int64_t(threads / warp_size * sizeof(double))};
}

}  // namespace throughtime::cuda
