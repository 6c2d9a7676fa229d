// The gradients of weight and bias of one of the steps' products (with x, with h or the second one), summed over chunks
// from delta, the gradient of the product. Sums are float32.
#pragma once

#include "../step/rows.hpp"
#include "chunk_product.hpp"

namespace throughtime::cuda {

template <class S>
class WeightGradient {
 public:
  // The weight is (rows, features). `shared` has the same delta, hence the same gradient of the bias.
  WeightGradient(int64_t of_rows, int64_t of_features, S* of_weight, Scratch& scratch, const WeightGradient* shared = nullptr)
      : rows(of_rows), features(of_features), d_weight(of_weight), owns_bias(!shared) {
    if (!d_weight) return;
    if constexpr (__is_same(S, float)) weight_sums = d_weight;
    else weight_sums = scratch.get<float>(rows * features);
    bias_sums = shared ? shared->bias_sums : scratch.get<float>(rows);
  }

  // Adds a chunk of `count` rows.
  void add(int64_t count, const S* delta, Matrix<const S> operand, int terms, Stream stream) {
    chunk_product<S, float>(rows, features, count, {delta, rows, true}, operand, {weight_sums, features}, adds, terms, stream);
    if (owns_bias) sum_columns(count, rows, delta, bias_sums, adds, stream);
    adds = true;
  }

  // Stores the sums in the caller's arrays; `d_bias` may be null.
  void finish(S* d_bias, Stream stream) const {
    if constexpr (!__is_same(S, float)) convert_array(rows, features, weight_sums, d_weight, stream);
    if (d_bias) convert_array(1, rows, bias_sums, d_bias, stream);
  }

  int64_t rows, features;

 private:
  S* d_weight;
  float *weight_sums = nullptr, *bias_sums = nullptr;
  bool owns_bias, adds = false;
};

}  // namespace throughtime::cuda
