// Reads the problems of residual add and LayerNorm from a dict of arrays, for both backends.
#pragma once

#include "../kernels.hpp"
#include "arrays.hpp"

namespace throughtime {

// Reads sizes and the entries of both directions; `rows` names an array (N, F) that is always there.
template <class Problem>
Sizes read_rows(const Arrays& from, const char* rows, Problem& p) {
  using S = std::remove_cvref_t<decltype(*p.weight)>;
  const Sizes shape = from.shape(rows, 2);
  p.N = shape[0], p.F = shape[1];
  if (p.F < 1) throw py::value_error("F: expected 1 or more");
  p.scale = static_cast<decltype(p.scale)>(from.number("scale"));
  p.weight = from.required<const S>("weight", {p.F});
  return shape;
}

template <class S, class Statistics>
void read(const Arrays& from, LayerNormForward<S, Statistics>& p) {
  const Sizes shape = read_rows(from, "x", p);
  p.eps = from.number("eps");
  p.x = from.required<const S>("x", shape);
  p.branch = from.optional<const S>("branch", shape);
  p.bias = from.required<const S>("bias", {p.F});
  p.sum = from.optional<S>("sum", shape);
  p.normalised = from.required<S>("normalised", shape);
  p.statistics = from.optional<Statistics>("statistics", {p.N, 4});
}

template <class S, class Statistics>
void read(const Arrays& from, LayerNormBackward<S, Statistics>& p) {
  const Sizes shape = read_rows(from, "sum", p);
  p.sum = from.required<const S>("sum", shape);
  p.statistics = from.required<const Statistics>("statistics", {p.N, 4});
  p.d_sum = from.optional<const S>("d_sum", shape);
  p.d_normalised = from.required<const S>("d_normalised", shape);
  p.d_x = from.required<S>("d_x", shape);
  p.d_branch = from.optional<S>("d_branch", shape);
  p.d_weight = from.required<S>("d_weight", {p.F});
  p.d_bias = from.required<S>("d_bias", {p.F});
}

}  // namespace throughtime
