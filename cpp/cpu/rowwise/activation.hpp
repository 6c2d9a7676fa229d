// Bias and activation of every row, and the backward: dx in place of dy, and the bias's gradient.
#pragma once

#include "rows.hpp"

namespace throughtime::TT_ISA {

template <class F, class S>
void activation_forward(const ActivationForward<S>& p, const Host& host) {
  using V = Vec<S>;
  const bool keeps = F::of_argument && p.x != p.y;
  RowBlocks blocks(p.N, p.F, host);
  blocks.run([&](int thread) {
    blocks.for_each(thread, [&](int64_t, Range rows) {
      for (int64_t r = rows.begin; r < rows.end; ++r)
        for_registers<S>(p.F, [&](int64_t j, int64_t count, int) {
          const int64_t i = r * p.F + j;
          const V x = load_some<V>(p.x + i, count) + load_some<V>(p.bias + j, count);
          if (keeps) store_some(p.x + i, x, count);
          store_some(p.y + i, F::value(x), count);
        });
    });
  });
}

template <class F, class S>
void activation_backward(const ActivationBackward<S>& p, const Host& host) {
  using V = Vec<S>;
  RowBlocks blocks(p.N, p.F, host);
  ColumnSums<S> columns(p.F, blocks, host);
  const auto add = [&](int64_t r, S* sums) {
    for_registers<S>(p.F, [&](int64_t j, int64_t count, int) {
      const int64_t i = r * p.F + j;
      const V d = F::gradient(load_some<V>(p.saved + i, count), load_some<V>(p.d + i, count));
      store_some(p.d + i, d, count);
      store_some(sums + j, load_some<V>(sums + j, count) + d, count);
    });
  };
  blocks.run([&](int thread) {
    blocks.for_each(thread, [&](int64_t block, Range rows) { columns.sum_block(thread, block, rows, add); });
  });
  columns.total([&](int64_t j, double sum) { p.d_bias[j] = S(sum); });
}

}  // namespace throughtime::TT_ISA
