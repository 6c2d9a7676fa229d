// Binding of bias and activation: turns a dict of arrays into a problem.
#include "arrays.hpp"
#include "register.hpp"
#include "run.hpp"

#include "../cpu/system/dispatch.hpp"

namespace throughtime {

namespace {

const ActivationKernels& find(const std::string& name) {
  const ActivationKernels* at = level().kernels->activations;
  while (at->name && name != at->name) ++at;
  if (!at->name) throw py::value_error("no activation is named " + name);
  return *at;
}

template <class S>
const ActivationEntries<S>& entries(const std::string& name) {
  if constexpr (std::is_same_v<S, float>) return find(name).f32;
  else return find(name).f64;
}

template <class S>
void forward(const std::string& name, const Arrays& from) {
  ActivationForward<S> p{};
  const Sizes shape = from.shape("x", 2);
  p.N = shape[0], p.F = shape[1];
  p.bias = from.required<const S>("bias", {p.F});
  p.x = from.required<S>("x", shape);
  p.y = from.required<S>("y", shape);
  from.done();
  run(entries<S>(name).forward, p);
}

template <class S>
void backward(const std::string& name, const Arrays& from) {
  ActivationBackward<S> p{};
  const Sizes shape = from.shape("d", 2);
  p.N = shape[0], p.F = shape[1];
  p.saved = from.required<const S>("saved", shape);
  p.d = from.required<S>("d", shape);
  p.d_bias = from.required<S>("d_bias", {p.F});
  from.done();
  run(entries<S>(name).backward, p);
}

}  // namespace

void register_activation(py::module_& m) {
  m.def("activation_of_argument", [](const std::string& name) { return find(name).of_argument; });
  m.def("activation_forward", [](const std::string& name, const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("x") ? forward<double> : forward<float>)(name, arrays);
  });
  m.def("activation_backward", [](const std::string& name, const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("d") ? backward<double> : backward<float>)(name, arrays);
  });
}

}  // namespace throughtime
