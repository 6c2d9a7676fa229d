// forward and backward of one layer and direction: a dict of arrays becomes a problem, its kernel runs without the GIL.
#include "arrays.hpp"
#include "parameters.hpp"
#include "register.hpp"
#include "run.hpp"

#include <pybind11/stl.h>

namespace throughtime {

namespace {

template <class S>
void describe(const CellKernels& cell, const Arrays& from, Recurrence<S>& p) {
  const Sizes x = from.shape("x", 3), weight = from.shape("weight_hh", 2);
  p.T = x[0], p.B = x[1], p.I = x[2], p.H = weight[0] / cell.gates, p.P = weight[1];
  if (!cell.projects && p.H != p.P) throw py::value_error("weight_hh: expected G H rows for H columns");
  p.reverse = from.truth("reverse");
  p.x = from.view<const S>("x", x);
  const std::vector<Named> named = parameters(cell, p.I, p.H, p.P);
  for (int i = 0; i < max_parameters; ++i) {
    if (!named[size_t(i)].name) continue;
    const auto& [name, shape] = named[size_t(i)];
    p.weights[i] = may_be_missing(i) ? from.optional<const S>(name, shape) : from.required<const S>(name, shape);
  }
  p.lengths = from.lengths("lengths", p.T, p.B);
  p.resets = from.optional<const uint8_t>("resets", {p.T, p.B});
  p.every = from.integer("every");
  if (p.T < 1 || p.H < 1 || p.every < 0 || p.every > p.T) throw py::value_error("every: expected 0 to T");
  const int64_t kept = p.every ? (p.T - 1) / p.every + 2 : p.T + 2;
  const Arrays zoneout = from.group("zoneout");
  for (int i = 0; i < cell.states; ++i) {
    const int64_t width = i == 0 ? p.P : p.H;
    p.states[i] = from.required<S>(state_names[i], {kept, p.B, width});
    if (zoneout.is_array(state_names[i])) p.zoneout_mask[i] = zoneout.optional<const uint8_t>(state_names[i], {p.T, p.B, width});
    else p.zoneout[i] = zoneout.number(state_names[i]);
  }
  Sizes saved = saved_shape<S>(cell, p.H);
  saved.insert(saved.begin(), {p.T, p.B});
  p.saved = from.optional<S>("saved", saved);
}

template <class S>
void forward(const CellKernels& cell, const Arrays& from) {
  Forward<S> p{};
  describe(cell, from, p);
  p.output = from.view<S>("output", {p.T, p.B, p.P});
  run(entries<S>(cell).forward, p);
}

template <class S>
void describe_parameters(const CellKernels& cell, const Arrays& gradients, const Arrays& norms, Backward<S>& p) {
  const std::vector<Named> named = parameters(cell, p.I, p.H, p.P);
  const bool asks_norms = norms.has(named[0].name);
  for (int i = 0; i < max_parameters; ++i) {
    if (!named[size_t(i)].name) continue;
    const auto& [name, shape] = named[size_t(i)];
    p.d_weights[i] = may_be_missing(i) ? gradients.optional<S>(name, shape) : gradients.required<S>(name, shape);
    if (asks_norms) p.norms[i] = norms.required<double>(name, {p.T});
  }
}

template <class S>
void describe_flow(const Arrays& from, Backward<S>& p) {
  p.exponent = from.required<int32_t>("exponent", {p.T, p.B});
  p.d_output_exponent = from.required<const int32_t>("output_exponent", {p.T, p.B});
  p.log10_sequence = from.required<double>("log10_sequence", {p.T, p.B});
  p.log10_unit = from.required<double>("log10_unit", {p.T, p.P});
  if (!p.d_output.data) throw py::value_error("output: expected an array");
}

template <class S>
void backward(const CellKernels& cell, const Arrays& from, const Arrays& gradients) {
  Backward<S> p{};
  describe(cell, from, p);
  const int64_t rows = cell.gates * p.H;
  p.truncate = gradients.integer("truncate");
  p.clip = gradients.number("clip");
  p.d_output = gradients.view<const S>("output", {p.T, p.B, p.P});
  p.d_cell = gradients.optional<const S>("d_cell", {p.T, p.B, p.H});
  p.d_input = gradients.view<S>("input", {p.T, p.B, p.I});
  p.add_to_input = gradients.truth("add_to_input");
  for (int i = 0; i < cell.states; ++i) {
    const int64_t width = i == 0 ? p.P : p.H;
    p.d_final[i] = gradients.group("final_state").optional<const S>(state_names[i], {p.B, width});
    p.d_initial[i] = gradients.group("initial_state").optional<S>(state_names[i], {p.B, width});
    p.d_states[i] = gradients.optional<S>(state_names[i], {p.T, p.B, width});
    if (!p.d_initial[i] != !p.d_initial[0]) throw py::value_error("initial_state: expected all or none");
  }
  p.d_gates = gradients.optional<S>("gates", {p.T, p.B, rows});
  p.clipped = p.clip > 0 ? gradients.required<uint8_t>("clipped", {p.T, p.B}) : nullptr;
  p.dropped = gradients.optional<const uint8_t>("dropped", {rows, p.P});
  if (gradients.has("parameters")) describe_parameters(cell, gradients.group("parameters"), gradients.group("norms"), p);
  if (gradients.has("exponent")) describe_flow(gradients, p);
  run(entries<S>(cell).backward, p);
}

}  // namespace

void register_recurrent(py::module_& m) {
  m.def("forward", [](const std::string& cell, const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("x") ? forward<double> : forward<float>)(find_cell(cell.c_str()), arrays);
  });
  m.def("backward", [](const std::string& cell, const py::dict& problem, const py::dict& gradients) {
    const Arrays arrays(problem);
    (arrays.is_double("x") ? backward<double> : backward<float>)(find_cell(cell.c_str()), arrays, Arrays(gradients));
  });
  m.def("empty", [](const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
    size_t bytes = size_t(dtype.itemsize());
    for (const py::ssize_t size : shape) bytes *= size_t(size);
    void* block = pool_acquire(bytes);
    const py::capsule owner(block, pool_release);  // back to the pool with the last reference
    return py::array(dtype, shape, block, owner);
  });
  m.def("parameter_shapes", [](const std::string& cell, int64_t I, int64_t H, int64_t P) {
    py::dict shapes;
    for (const Named& parameter : parameters(find_cell(cell.c_str()), I, H, P))
      if (parameter.name) shapes[parameter.name] = py::tuple(py::cast(parameter.shape));
    return shapes;
  });
  m.def("saved_shape", [](const std::string& cell, bool float64, int64_t hidden_size) {
    return py::tuple(py::cast((float64 ? saved_shape<double> : saved_shape<float>)(find_cell(cell.c_str()), hidden_size)));
  });
}

}  // namespace throughtime
