// Turns a chunk's deltas into dx, dW_ih, dW_hh and the biases' gradients (sums of deltas), and finds the norms of each step's
// contributions.
#pragma once

#include "deltas.hpp"
#include "norms.hpp"

namespace throughtime::TT_ISA {

template <class C, class S, class Tiles>
class ChunkGradients {
  using V = Vec<S>;
  using Engine = typename Tiles::ChunkEngine;
  using Product = typename Tiles::Product;
  using ChunkWeight = typename Engine::Weight;
  using WeightGradient = TT_ISA::WeightGradient<S, Tiles>;
  using ThreadView = BackwardThreadView<C, S, Tiles>;
  static constexpr int W = lanes<S>, R = C::recurrent, values = unit_parameter_count<C>();
  static constexpr bool two_products = C::phases == Phases::two_products;
  static constexpr const S* none = nullptr;  // no bias

 public:
  ChunkGradients(const Backward<S>& problem, const Host& host, const Engine& of_host, const History<S>& of_loop,
                 const Deltas<C, S, Tiles>& of_chunk)
      : p(problem), threads(host.threads), engine(of_host), steps{p, p.truncate}, history(of_loop), deltas(of_chunk) {
    const int64_t input_vectors = Product::panels(ceil_div(p.I, W)) * Product::vectors;
    weight_packed = scratch<ChunkWeight>(host, engine.packed_size(deltas.inputs.row_size(), input_vectors));
    panels_size = engine.packed_size(row_buffer_rows(), Engine::panels_at_once * Product::vectors);
    panels = scratch<ChunkWeight>(host, threads * panels_size);
    zeros = scratch<S>(host, p.P);
    __builtin_memset(zeros, 0, size_t(p.P) * sizeof(S));
    if (asks_norms()) norms = scratch<double>(host, threads * norms_scratch().total());
  }

  bool asks_norms() const { return p.norms[0] != nullptr; }
  bool asks_weights() const { return p.d_weights[weight_ih] != nullptr; }
  // Rows of a left operand, or rows to transpose, that a thread's buffers hold.
  int64_t row_buffer_rows() const { return Engine::columns_padded(deltas.chunk * p.B); }

  // Packs one part of the weights, before anything else runs.
  void pack(int part, Poll& poll) const {
    const Range panels = share(p.d_input.data ? Product::panels(ceil_div(p.I, W)) : 0, threads, part);
    in_pieces(panels, deltas.inputs.row_size() * Product::vectors * W, poll, [&](Range own) {
      engine.template pack_columns<Product::vectors>(p.weights[weight_ih], p.I, deltas.inputs.order, own, weight_packed);
    });
  }

  // Transposes the chunk's x and h. Rows that take no part become zero, whatever they hold (padding may be NaN).
  TT_PHASE void transpose_operands(const ThreadView& view, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * p.B;
    const Range own = share(Engine::columns_padded(count), threads, view.part, W);
    for (int64_t r = own.begin; r < own.end; ++r) {
      if (r >= count) {
        view.rows[r] = view.other[r] = nullptr;
        continue;
      }
      const int64_t s = begin + r / p.B, b = r % p.B;
      const int flags = steps.ruled() ? steps.flags(s, b) : 0;
      view.rows[r] = flags & inactive ? nullptr : x(s, b);
      view.other[r] = flags & (inactive | reset) ? nullptr : history.state(0, s) + b * p.P;
    }
    deltas.inputs.transpose(view.rows, own);
    deltas.recurrent.transpose(view.other, own);
  }

  // Transposes the second product's operand, which the steps have stored.
  TT_PHASE void transpose_middle(const ThreadView& view, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * p.B;
    const Range own = share(Engine::columns_padded(count), threads, view.part, W);
    for (int64_t r = own.begin; r < own.end; ++r) {
      const bool idle = r >= count || (steps.ruled() && steps.flags(begin + r / p.B, r % p.B) & inactive);
      view.rows[r] = idle ? nullptr : deltas.middle + r * p.H;
    }
    deltas.second.transpose(view.rows, own);
  }

  TT_PHASE void input_gradient(const ThreadView& view, int64_t begin, int64_t end) {
    const Range own = share((end - begin) * p.B, threads, view.part, Product::rows);
    for (int64_t r = own.begin; r < own.end; ++r) {
      const int64_t s = begin + r / p.B, b = r % p.B;
      view.targets[r] = p.d_input.data + steps.time(s) * p.d_input.time + b * p.d_input.batch;
    }
    const Panels panels{0, Product::panels(ceil_div(p.I, W))};
    const auto put = [&](int64_t first, int count, int64_t q, const V* sums) {
      for (int64_t r = first; r < first + count; ++r, sums += Product::vectors) {
        // 0 * inf is NaN, so inactive rows are set to zero explicitly.
        const bool idle = steps.ruled() && steps.flags(begin + r / p.B, r % p.B) & inactive;
        for (int v = 0; v < Product::vectors && (q + v) * W < p.I; ++v) {
          S* target = view.targets[r] + (q + v) * W;
          const int64_t n = p.I - (q + v) * W;
          const V part = idle ? V{} : sums[v];
          store_some(target, p.add_to_input ? part + load_some<V>(target, n) : part, n);
        }
      }
    };
    // The ring wraps: rows before and after its end.
    const int64_t first = deltas.row(begin), wrap = deltas.rows() - first;
    const Range parts[2] = {{own.begin, own.end < wrap ? own.end : wrap}, {own.begin > wrap ? own.begin : wrap, own.end}};
    for (int i = 0; i < 2; ++i) {
      if (parts[i].begin >= parts[i].end) continue;
      const auto rows = deltas.inputs.delta.rows(i ? -wrap : first, parts[i], view.rows);
      engine.template product<Product>(deltas.inputs.row_size(), rows, parts[i], weight_packed, panels, none, sink<S>(put),
                                       view.unit->chunks());
    }
  }

  // Adds a chunk's weight gradients, some panels at a time, packed just before they are used.
  TT_PHASE void weight_gradients(const ThreadView& view, int64_t begin, int64_t end) {
    ChunkWeight* const own_panels = panels + view.part * panels_size;
    const int64_t height = (end - begin) * p.B, size = engine.packed_size(height, Product::vectors);
    const auto add = [&](const WeightGradient& product, Range some) {
      product.add_gradient(engine, height, some, own_panels, view.rows, row_buffer_rows(), view.unit->chunks());
    };
    deltas.for_products([&](const WeightGradient& product) {
      if (!product.has_own_delta()) return;
      const Range own = share(Product::panels(product.order.vectors()), threads, view.part);
      for (Range some = {own.begin, own.begin}; some.begin < own.end; some.begin = some.end) {
        for (; some.end < own.end && some.end < some.begin + Engine::panels_at_once; ++some.end)
          product.pack(engine, deltas.row(begin), height, some.end, own_panels + (some.end - some.begin) * size);
        add(product, some);
        if (!C::split && &product == &deltas.inputs) add(deltas.recurrent, some);
      }
    });
    if constexpr (values > 0) deltas.unit_gradients.close_chunk(begin, end, threads, view.part);
  }

  TT_PHASE void step_norms(const ThreadView& view, int64_t begin, int64_t end) {
    const Range own = share(end - begin, threads, view.part);
    StepNorms<S> norm(norms + view.part * norms_scratch().total(), norms_scratch(), view.unit->chunks());
    for (int64_t s = begin + own.begin; s < begin + own.end && !view.unit->stopped(); ++s) {
      const int64_t t = steps.time(s);
      const Norms x = product_norms(view, norm, deltas.inputs, s, begin),
                  h = product_norms(view, norm, deltas.recurrent, s, begin);
      p.norms[weight_ih][t] = x.weight, p.norms[bias_ih][t] = x.bias;
      p.norms[weight_hh][t] = h.weight, p.norms[bias_hh][t] = h.bias;
      if constexpr (two_products) {
        const Norms m = product_norms(view, norm, deltas.second, s, begin);
        if (C::projects) p.norms[weight_hr][t] = m.weight;
        else p.norms[weight_hh][t] = joint(h.weight, m.weight), p.norms[bias_hh][t] = joint(h.bias, m.bias);
      }
      if constexpr (values > 0)
        deltas.unit_gradients.norms(norm, s, view.rows, [&](int parameter, double value) { p.norms[parameter][t] = value; });
    }
  }

  TT_PHASE void unpack_weights(const ThreadView& view) {
    const auto unpack = [&](const WeightGradient& product, S* d_weight, S* d_bias) {
      product.unpack(threads, view.part, d_weight, C::bias_inside ? nullptr : d_bias, view.unit->chunks());
    };
    unpack(deltas.inputs, p.d_weights[weight_ih], p.d_weights[bias_ih]);
    unpack(deltas.recurrent, p.d_weights[weight_hh], p.d_weights[bias_hh]);
    if constexpr (two_products)
      unpack(deltas.second, second_part<C>(p.d_weights, p, weight_hh), second_part<C>(p.d_weights, p, bias_hh));
    if constexpr (values > 0)
      if (view.part == 0) deltas.unit_gradients.unpack(p.d_weights);
  }

 private:
  const S* x(int64_t s, int64_t b) const { return p.x.data + steps.time(s) * p.x.time + b * p.x.batch; }

  typename StepNorms<S>::Scratch norms_scratch() const { return {p.B, deltas.inputs.row_size(), p.I, p.H > p.P ? p.H : p.P}; }

  struct Norms {
    double weight, bias;
  };

  static double joint(double a, double b) {
    const double largest = a > b ? a : b, part = largest > 0 ? (a > b ? b : a) / largest : 0;
    return largest * __builtin_sqrt(1 + part * part);
  }

  // Norms of step s's contribution to the gradients of one product.
  Norms product_norms(const ThreadView& view, StepNorms<S>& norm, const WeightGradient& product, int64_t s, int64_t begin) const {
    int64_t count = 0;
    for (int64_t b = 0; b < p.B; ++b) {
      const int flags = steps.ruled() ? steps.flags(s, b) : 0;
      if (flags & inactive) continue;
      view.rows[count] = product.delta.row(deltas.row(s) + b);
      view.other[count++] = &product == &deltas.inputs   ? x(s, b)
                            : &product == &deltas.second ? deltas.middle + ((s - begin) * p.B + b) * p.H
                            : flags & reset              ? zeros
                                                         : history.state(0, s) + b * p.P;
    }
    const int64_t above = &product == &deltas.second ? R * p.H : 0;  // rows of weight_hh above the product's own
    const auto dropped = [&](int64_t g) -> const uint8_t* {
      const int64_t row = product.order.row(g / W, g % W);
      return p.dropped && &product != &deltas.inputs && !(C::projects && &product == &deltas.second) && row >= 0
                 ? p.dropped + (above + row) * p.P
                 : nullptr;
    };
    return {norm.of_weight(view.rows, product.row_size(), view.other, product.features, count, dropped),
            norm.of_bias(view.rows, product.row_size(), count)};
  }

  const Backward<S>& p;
  const int threads;
  Engine engine;
  const Steps<S> steps;
  const History<S>& history;
  const Deltas<C, S, Tiles>& deltas;
  ChunkWeight* weight_packed;  // W_ih, packed for sums over gates
  ChunkWeight* panels;         // of delta, some per thread
  int64_t panels_size;
  S* zeros;  // the state before an episode
  double* norms = nullptr;
};

}  // namespace throughtime::TT_ISA
