// Residual add and LayerNorm: a dict of arrays becomes a problem.
#include "arrays.hpp"
#include "register.hpp"
#include "run.hpp"

#include "../cpu/dispatch.hpp"

namespace throughtime {

namespace {

template <class S>
const LayerNormEntries<S>& entries() {
  if constexpr (std::is_same_v<S, float>) return level().kernels->layer_norm->f32;
  else return level().kernels->layer_norm->f64;
}

// Sizes and what both directions share; `rows` names an array (N, F) that is always there.
template <class Problem>
Sizes describe(const Arrays& from, const char* rows, Problem& p) {
  using S = std::remove_cvref_t<decltype(*p.weight)>;
  const Sizes shape = from.shape(rows, 2);
  p.N = shape[0], p.F = shape[1];
  if (p.F < 1) throw py::value_error("F: expected 1 or more");
  p.scale = from.number("scale");
  p.weight = from.required<const S>("weight", {p.F});
  return shape;
}

template <class S>
void forward(const Arrays& from) {
  LayerNormForward<S> p{};
  const Sizes shape = describe(from, "x", p);
  p.eps = from.number("eps");
  p.x = from.required<const S>("x", shape);
  p.branch = from.optional<const S>("branch", shape);
  p.bias = from.required<const S>("bias", {p.F});
  p.sum = from.optional<S>("sum", shape);
  p.normalised = from.required<S>("normalised", shape);
  p.statistics = from.optional<S>("statistics", {p.N, 3});
  run(entries<S>().forward, p);
}

template <class S>
void backward(const Arrays& from) {
  LayerNormBackward<S> p{};
  const Sizes shape = describe(from, "sum", p);
  p.sum = from.required<const S>("sum", shape);
  p.statistics = from.required<const S>("statistics", {p.N, 3});
  p.d_sum = from.optional<const S>("d_sum", shape);
  p.d_normalised = from.required<const S>("d_normalised", shape);
  p.d_x = from.required<S>("d_x", shape);
  p.d_branch = from.optional<S>("d_branch", shape);
  p.d_weight = from.required<S>("d_weight", {p.F});
  p.d_bias = from.required<S>("d_bias", {p.F});
  run(entries<S>().backward, p);
}

}  // namespace

void register_layer_norm(py::module_& m) {
  m.def("layer_norm_forward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("x") ? forward<double> : forward<float>)(arrays);
  });
  m.def("layer_norm_backward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("sum") ? backward<double> : backward<float>)(arrays);
  });
}

}  // namespace throughtime
