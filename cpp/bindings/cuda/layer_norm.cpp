// Residual add and LayerNorm on the device: a dict of arrays becomes a problem.
#include "../../cuda/layer_norm.hpp"

#include "../arrays.hpp"
#include "register.hpp"

namespace throughtime {

namespace {

// Of arrays in S, which NumPy holds as S or as bits.
template <class S>
class DeviceArrays : public Arrays {
 public:
  using Arrays::Arrays;
  using Held = std::conditional_t<std::is_same_v<S, float>, float, uint16_t>;

  const S* in(const char* name, const Sizes& shape) const {
    return reinterpret_cast<const S*>(required<const Held>(name, shape));
  }
  const S* in_or_null(const char* name, const Sizes& shape) const {
    return reinterpret_cast<const S*>(optional<const Held>(name, shape));
  }
  S* out(const char* name, const Sizes& shape) const { return reinterpret_cast<S*>(required<Held>(name, shape)); }
  S* out_or_null(const char* name, const Sizes& shape) const { return reinterpret_cast<S*>(optional<Held>(name, shape)); }
  cuda::Queue queue() const { return {reinterpret_cast<void*>(uintptr_t(integer("stream")))}; }
};

// Sizes and what both directions share; `rows` names an array (N, F) that is always there.
template <class S, class Problem>
Sizes describe(const DeviceArrays<S>& from, const char* rows, Problem& p) {
  const Sizes shape = from.shape(rows, 2);
  p.N = shape[0], p.F = shape[1];
  if (p.F < 1 || p.F > INT32_MAX) throw py::value_error("F: expected 1 to 2^31 - 1");
  if (p.N > INT32_MAX) throw py::value_error("N: expected less than 2^31");
  p.scale = float(from.number("scale"));
  p.weight = from.in("weight", {p.F});
  return shape;
}

template <class S>
void forward(const DeviceArrays<S>& from) {
  cuda::LayerNormForward<S> p{};
  const Sizes shape = describe(from, "x", p);
  p.eps = float(from.number("eps"));
  p.x = from.in("x", shape);
  p.branch = from.in_or_null("branch", shape);
  p.bias = from.in("bias", {p.F});
  p.sum = from.out_or_null("sum", shape);
  p.normalised = from.out("normalised", shape);
  p.statistics = from.template optional<float>("statistics", {p.N, 3});
  const cuda::Queue queue = from.queue();
  const py::gil_scoped_release unlocked;
  cuda::layer_norm_forward(p, queue);
}

template <class S>
void backward(const DeviceArrays<S>& from) {
  cuda::LayerNormBackward<S> p{};
  const Sizes shape = describe(from, "sum", p);
  p.sum = from.in("sum", shape);
  p.statistics = from.template required<const float>("statistics", {p.N, 3});
  p.d_sum = from.in_or_null("d_sum", shape);
  p.d_normalised = from.in("d_normalised", shape);
  p.d_x = from.out("d_x", shape);
  p.d_branch = from.out_or_null("d_branch", shape);
  p.d_weight = from.out("d_weight", {p.F});
  p.d_bias = from.out("d_bias", {p.F});
  p.blocks = from.integer("blocks");
  const cuda::Queue queue = from.queue();
  const py::gil_scoped_release unlocked;
  cuda::layer_norm_backward(p, queue);
}

// Calls body(DeviceArrays<S>(problem)) with the S that `type` names.
template <class Body>
void with_type(const py::dict& problem, const Body& body) {
  const auto type = problem["type"].cast<std::string>();
  if (type == "float32") body(DeviceArrays<float>(problem));
  else if (type == "bfloat16") body(DeviceArrays<cuda::BFloat16>(problem));
  else if (type == "float16") body(DeviceArrays<cuda::Float16>(problem));
  else throw py::value_error("type: expected float32, bfloat16 or float16, got " + type);
}

}  // namespace

void register_cuda_layer_norm(py::module_& m) {
  m.def("layer_norm_forward", [](const py::dict& problem) { with_type(problem, [](const auto& from) { forward(from); }); });
  m.def("layer_norm_backward", [](const py::dict& problem) { with_type(problem, [](const auto& from) { backward(from); }); });
}

}  // namespace throughtime
