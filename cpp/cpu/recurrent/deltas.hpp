// The deltas that a chunk's steps leave for its products, and the views that the backward's threads work on.
#pragma once

#include "history.hpp"
#include "unit_parameters.hpp"
#include "weight_gradient.hpp"

namespace throughtime::TT_ISA {

// The deltas of a chunk (the gradient of each of a step's products), and the gradients of the weights. A step's delta must
// outlive its chunk by one step, so the rows form a ring of chunk + 1 steps. If dr equals dx, both products share one buffer.
template <class C, class S, class Tiles>
struct Deltas {
  using WeightGradient = TT_ISA::WeightGradient<S, Tiles>;
  using ChunkEngine = typename Tiles::ChunkEngine;
  static constexpr int W = lanes<S>;
  static constexpr bool two_products = C::phases == Phases::two_products;

  Deltas(const Backward<S>& p, const Host& host, const ChunkEngine& engine, int64_t of_chunk) : chunk(of_chunk), B(p.B) {
    const bool asks_norms = p.norms[0], readable = asks_norms || !Tiles::Engine::copies_operands;
    const auto prepare = [&](WeightGradient& product, Interleaved order, int64_t features,
                             const WeightGradient* shared = nullptr) {
      product.prepare(engine, host, order, p.d_weights[weight_ih] ? features : 0, rows(), ChunkEngine::columns_padded(chunk * B),
                      readable, shared);
    };
    prepare(inputs, {C::gates, p.H, W}, p.I);
    prepare(recurrent, {C::recurrent, p.H, W}, p.P, C::split ? nullptr : &inputs);
    if (two_products) prepare(second, {1, p.P, W}, p.H), middle = scratch<S>(host, chunk * B * p.H);
    if constexpr (unit_parameter_count<C>() > 0) unit_gradients.prepare(host, B, p.H, asks_norms ? chunk : 1);
  }

  int64_t rows() const { return (chunk + 1) * B; }
  int64_t row(int64_t step) const { return step % (chunk + 1) * B; }

  // A step's delta as a left operand.
  template <class View>
  typename Tiles::Engine::Rows step_rows(const WeightGradient& product, int64_t step, const View& view) const {
    if constexpr (Tiles::Engine::copies_operands) {
      return product.delta.rows(row(step), view.b, view.rows);
    } else {
      for (int64_t b = view.b.begin; b < view.b.end; ++b) view.rows[b] = product.delta.row(row(step) + b);
      return {view.rows};
    }
  }

  template <class Take>
  void for_products(const Take& take) const {
    take(inputs);
    take(recurrent);
    if constexpr (two_products) take(second);
  }

  void clear(int parts, int part, Poll& poll) const {
    for_products([&](const WeightGradient& product) { product.clear(parts, part, poll); });
    if constexpr (unit_parameter_count<C>() > 0) unit_gradients.clear(parts, part);
  }

  int64_t chunk, B;  // steps of a chunk, sequences
  WeightGradient inputs, recurrent, second;
  S* middle;  // (chunk rows, H): the second product's operand
  UnitGradients<C, S> unit_gradients;
};

// One part of the work, with its buffers.
template <class C, class S, class Tiles>
struct BackwardThreadView {
  using Unit = Units<typename Tiles::Engine, typename Tiles::ChunkEngine>;

  int part;
  Range b, j, q;            // sequences, vectors of units and of features of h
  const S **rows, **other;  // one pointer per row of the chunk
  S** targets;
  uint8_t *flags, *later_flags;  // of this step and the later one
  S* scales;                     // factor of each sequence's carried gradient, from clipping or the flow
  Unit* unit = nullptr;          // of the thread that runs this part
};

// The arrays of one step.
template <class C, class S>
struct BackwardStepView {
  int64_t s, t;
  const S* before[C::states];  // (B, H)
  const S* after[C::states];
  const S* saved;
  int64_t delta_row;                            // in the ring
  int64_t row;                                  // in the chunk
  int64_t state_row;                            // in d_states
  const S *next_saved, *next_cell, *next_loss;  // of the step taken next, or of this one if it is the last
};

}  // namespace throughtime::TT_ISA
