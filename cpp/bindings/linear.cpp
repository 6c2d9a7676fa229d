// Binding of linear layers: turns a dict of arrays into a problem.
#include "arrays.hpp"
#include "register.hpp"
#include "run.hpp"

#include "../cpu/system/dispatch.hpp"

namespace throughtime {

namespace {

template <class S>
const LinearEntries<S>& entries() {
  if constexpr (std::is_same_v<S, float>) return level().kernels->linear->f32;
  else return level().kernels->linear->f64;
}

// Reads the entries of both directions.
template <class S, class Problem>
void describe(const Arrays& from, Problem& p) {
  const Sizes shape = from.shape("weight", 2);
  p.N = from.shape("x", 2)[0], p.I = shape[1], p.O = shape[0];
  if (p.I < 1 || p.O < 1) throw py::value_error("weight: expected 1 or more inputs and outputs");
  p.x = from.required<const S>("x", {p.N, p.I});
  p.weight = from.required<const S>("weight", shape);
}

template <class S>
void forward(const Arrays& from) {
  LinearForward<S> p{};
  describe<S>(from, p);
  p.bias = from.optional<const S>("bias", {p.O});
  p.y = from.required<S>("y", {p.N, p.O});
  from.done();
  run(entries<S>().forward, p);
}

template <class S>
void backward(const Arrays& from) {
  LinearBackward<S> p{};
  describe<S>(from, p);
  p.d_y = from.required<const S>("d_y", {p.N, p.O});
  p.d_x = from.required<S>("d_x", {p.N, p.I});
  p.d_weight = from.required<S>("d_weight", {p.O, p.I});
  p.d_bias = from.optional<S>("d_bias", {p.O});
  from.done();
  run(entries<S>().backward, p);
}

}  // namespace

void register_linear(py::module_& m) {
  m.def("linear_forward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("x") ? forward<double> : forward<float>)(arrays);
  });
  m.def("linear_backward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("x") ? backward<double> : backward<float>)(arrays);
  });
}

}  // namespace throughtime
