// Residual add and LayerNorm on the device: a dict of arrays becomes a problem.
#include "../../cuda/layer_norm.hpp"

#include "../arrays.hpp"
#include "register.hpp"
#include "types.hpp"

namespace throughtime {

namespace {

// Sizes and what both directions share; `rows` names an array (N, F) that is always there.
template <class Problem>
Sizes describe(const Arrays& from, const char* rows, Problem& p) {
  using S = std::remove_cvref_t<decltype(*p.weight)>;
  const Sizes shape = from.shape(rows, 2);
  p.N = shape[0], p.F = shape[1];
  if (!(p.F >= 1 && p.F <= INT32_MAX)) throw py::value_error("F: expected 1 to 2^31 - 1");
  if (p.N > INT32_MAX) throw py::value_error("N: expected less than 2^31");
  p.scale = float(from.number("scale"));
  p.weight = from.required<const S>("weight", {p.F});
  return shape;
}

template <class S>
void forward(const Arrays& from) {
  cuda::LayerNormForward<S> p{};
  const Sizes shape = describe(from, "x", p);
  p.eps = float(from.number("eps"));
  p.x = from.required<const S>("x", shape);
  p.branch = from.optional<const S>("branch", shape);
  p.bias = from.required<const S>("bias", {p.F});
  p.sum = from.optional<S>("sum", shape);
  p.normalised = from.required<S>("normalised", shape);
  p.statistics = from.optional<float>("statistics", {p.N, 3});
  const cuda::Queue queue = queue_of(uintptr_t(from.integer("stream")));
  const py::gil_scoped_release unlocked;
  cuda::layer_norm_forward(p, queue);
}

template <class S>
void backward(const Arrays& from) {
  cuda::LayerNormBackward<S> p{};
  const Sizes shape = describe(from, "sum", p);
  p.sum = from.required<const S>("sum", shape);
  p.statistics = from.required<const float>("statistics", {p.N, 3});
  p.d_sum = from.optional<const S>("d_sum", shape);
  p.d_normalised = from.required<const S>("d_normalised", shape);
  p.d_x = from.required<S>("d_x", shape);
  p.d_branch = from.optional<S>("d_branch", shape);
  p.d_weight = from.required<S>("d_weight", {p.F});
  p.d_bias = from.required<S>("d_bias", {p.F});
  p.blocks = from.integer("blocks");
  const cuda::Queue queue = queue_of(uintptr_t(from.integer("stream")));
  const py::gil_scoped_release unlocked;
  cuda::layer_norm_backward(p, queue);
}

std::string type_of(const py::dict& problem) { return problem["type"].cast<std::string>(); }

}  // namespace

void register_cuda_layer_norm(py::module_& m) {
  m.def("layer_norm_forward",
        [](const py::dict& problem) { of_type(type_of(problem), [&](auto zero) { forward<decltype(zero)>(Arrays(problem)); }); });
  m.def("layer_norm_backward", [](const py::dict& problem) {
    of_type(type_of(problem), [&](auto zero) { backward<decltype(zero)>(Arrays(problem)); });
  });
}

}  // namespace throughtime
