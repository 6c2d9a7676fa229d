// Computes from a chunk's delta (the gradient of the pre-activations): dx, dW_ih, dW_hh, the biases' gradients, which are sums
// of delta, and the norms of each step's contributions.
#pragma once

#include "../step/unit_parameters.hpp"
#include "chunks.hpp"
#include "norms.hpp"
#include "weight_gradient.hpp"

#include <optional>

namespace throughtime::cuda {

// The arrays that the steps of a chunk fill for its products.
template <class S>
struct Deltas {
  Chunk chunk;
  S *x, *r;            // (rows, G H), (rows, R H); the same array if the cell is not split
  S *second, *middle;  // (rows, P), (rows, H): delta and operand of a second product
  float* unit;         // (rows, values H): of the unit parameters; null if not needed
  S* gathered;         // (rows, P): memory for `hidden`
  const S* hidden;     // (rows, P): h before each step; zeros if the step is inactive or starts an episode
};

template <class C, class S>
class ChunkGradients {
  static constexpr int G = C::gates, R = C::recurrent, values = unit_parameter_count<C>();
  static constexpr bool two_products = C::phases == Phases::two_products;

 public:
  ChunkGradients(const Backward<S>& problem, int of_terms, int64_t chunk, Scratch& scratch)
      : p(problem),
        terms(of_terms),
        x_stride(p.lengths ? 0 : matrix_stride(p.x, p.B, p.I)),
        d_input_stride(p.lengths ? 0 : matrix_stride(p.d_input, p.B, p.I)),
        inputs(G * p.H, p.I, p.d_weights[weight_ih], scratch),
        recurrent(R * p.H, p.P, p.d_weights[weight_hh], scratch, C::split ? nullptr : &inputs) {
    const int64_t rows = chunk * p.B;
    if (p.d_input.data && !d_input_stride) d_x = scratch.get<float>(rows * p.I);
    if constexpr (two_products) second.emplace(p.P, p.H, second_part<C>(p.d_weights, p, weight_hh), scratch);
    if (!asks_weights()) return;
    if (!x_stride) x_gathered = scratch.get<S>(rows * p.I);
    if (values > 0) unit_sums = scratch.get<float>(values * p.H);
  }

  bool asks_weights() const { return p.d_weights[weight_ih] != nullptr; }

  void run(const Deltas<S>& of, Stream stream) {
    if (p.d_input.data) input_gradient(of, stream);
    if (asks_weights()) parameter_gradients(of, stream);
  }

  // Stores the parameters' gradients in the caller's arrays.
  void finish(Stream stream) const {
    if (!asks_weights()) return;
    inputs.finish(C::bias_inside ? nullptr : p.d_weights[bias_ih], stream);
    recurrent.finish(C::bias_inside ? nullptr : p.d_weights[bias_hh], stream);
    if (second) second->finish(second_part<C>(p.d_weights, p, bias_hh), stream);
    for_unit_parameters<C>(p.d_weights, p.H,
                           [&](int value, S* into) { convert_array(1, p.H, unit_sums + value * p.H, into, stream); });
  }

 private:
  int64_t rows(const Deltas<S>& of) const { return of.chunk.count() * p.B; }

  // Rows of inactive steps must be zero; zero delta times an infinite weight is NaN, so scatter_rows sets them.
  void input_gradient(const Deltas<S>& of, Stream stream) const {
    const Matrix<const S> delta{of.x, inputs.rows}, weight{p.weights[weight_ih], p.I};
    if (d_input_stride) {
      const Matrix<S> into{p.d_input.data + of.chunk.t0 * p.d_input.time, d_input_stride};
      chunk_product<S, S>(rows(of), p.I, inputs.rows, delta, weight, into, p.add_to_input, terms, stream);
      return;
    }
    chunk_product<S, float>(rows(of), p.I, inputs.rows, delta, weight, {d_x, p.I}, false, terms, stream);
    launch(stream, over(rows(of), p.I), scatter_rows<S>, ChunkRows<S>{p, of.chunk.t0, p.I, inactive}, d_x, p.d_input,
           p.add_to_input);
  }

  void parameter_gradients(const Deltas<S>& of, Stream stream) {
    const Matrix<const S> x = find_x(of.chunk, stream);
    inputs.add(rows(of), of.x, x, terms, stream);
    recurrent.add(rows(of), of.r, {of.hidden, p.P}, terms, stream);
    if (second) second->add(rows(of), of.second, {of.middle, p.H}, terms, stream);
    if (values > 0) {
      sum_columns(rows(of), values * p.H, of.unit, unit_sums, adds_units, stream);
      adds_units = true;
    }
    if (p.norms[weight_ih]) find_norms(of, x, stream);
  }

  // The chunk's x; rows of inactive steps are zero, whatever they hold (padding may be NaN).
  Matrix<const S> find_x(const Chunk& chunk, Stream stream) const {
    if (x_stride) return {p.x.data + chunk.t0 * p.x.time, x_stride};
    const ChunkRows<S> of{p, chunk.t0, p.I, inactive};
    launch(stream, over(chunk.count() * p.B, p.I), gather_rows<S>, of, p.x, x_gathered);
    return {x_gathered, p.I};
  }

  void find_norms(const Deltas<S>& of, Matrix<const S> x, Stream stream) const {
    product_norms(of.chunk, inputs, of.x, x, nullptr, weight_ih, bias_ih, false, stream);
    product_norms(of.chunk, recurrent, of.r, {of.hidden, p.P}, p.dropped, weight_hh, bias_hh, false, stream);
    if constexpr (two_products) {
      const uint8_t* dropped = p.dropped && !C::projects ? p.dropped + R * p.H * p.P : nullptr;
      product_norms(of.chunk, *second, of.second, {of.middle, p.H}, dropped, C::projects ? weight_hr : weight_hh, bias_hh,
                    !C::projects, stream);
    }
    if constexpr (values > 0) unit_norms(of, stream);
  }

  // `joins`: adds to the norms that are there already.
  void product_norms(const Chunk& chunk, const WeightGradient<S>& product, const S* delta, Matrix<const S> operand,
                     const uint8_t* dropped, Parameter weight, Parameter bias, bool joins, Stream stream) const {
    const Launch shape = over_steps(chunk.count(), product.rows);
    double* const of_weight = p.norms[weight] + chunk.t0;
    launch(stream, shape, weight_norms<S>,
           WeightNorms<S>{p.B, product.rows, product.features, delta, operand.data, operand.stride, dropped, of_weight, joins});
    if (weight != weight_hr)
      launch(stream, shape, bias_norms<S>, delta, product.rows, p.B, product.rows, p.norms[bias] + chunk.t0, joins);
  }

  void unit_norms(const Deltas<S>& of, Stream stream) const {
    const auto find = [&](int parameter, int value, int count) {
      launch(stream, over_steps(of.chunk.count(), count * p.H), bias_norms<float>, of.unit + value * p.H, values * p.H, p.B,
             count * p.H, p.norms[parameter] + of.chunk.t0, false);
    };
    for (int bias = bias_ih; C::bias_inside && bias <= bias_hh; ++bias) find(bias, first_value<C>(bias), G);
    int first = bias_values<C>();
    for (int i = 0; i < max_unit_parameters && C::unit_parameters[i].name; first += C::unit_parameters[i++].count)
      find(first_unit_parameter + i, first, C::unit_parameters[i].count);
  }

  const Backward<S> p;
  int terms;
  int64_t x_stride, d_input_stride;  // as matrices; 0: gathered and scattered
  WeightGradient<S> inputs, recurrent;
  std::optional<WeightGradient<S>> second;
  S* x_gathered = nullptr;     // (chunk rows, I)
  float* d_x = nullptr;        // (chunk rows, I)
  float* unit_sums = nullptr;  // (values, H)
  bool adds_units = false;
};

}  // namespace throughtime::cuda
