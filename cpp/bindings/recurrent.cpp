// forward and backward of one layer and direction: a dict of arrays becomes a problem, its kernel runs without the GIL.
#include "arrays.hpp"
#include "register.hpp"
#include "run.hpp"

#include <pybind11/stl.h>

#include "../cpu/dispatch.hpp"

namespace throughtime {

namespace {

constexpr const char* state_names[max_states] = {"hidden", "cell"};
constexpr const char* parameter_names[max_parameters] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"};

template <class S>
const Entries<S>& entries(const CellKernels& cell) {
  if constexpr (std::is_same_v<S, float>) return cell.f32;
  else return cell.f64;
}

template <class S>
Sizes saved_shape(const CellKernels& cell, int64_t H) {
  const int64_t lanes = level().kernels->vector_bytes / int64_t(sizeof(S));
  return {(H + lanes - 1) / lanes, cell.saved, lanes};
}

template <class S>
void describe(const CellKernels& cell, const Arrays& from, Recurrence<S>& p) {
  const Sizes x = from.shape("x", 3), weight = from.shape("weight_hh", 2);
  p.T = x[0], p.B = x[1], p.I = x[2], p.H = weight[1];
  const int64_t rows = cell.gates * p.H;
  p.reverse = from.truth("reverse");
  p.x = from.view<const S>("x", x);
  p.weight_ih = from.required<const S>("weight_ih", {rows, p.I});
  p.weight_hh = from.required<const S>("weight_hh", {rows, p.H});
  p.bias_ih = from.optional<const S>("bias_ih", {rows});
  p.bias_hh = from.optional<const S>("bias_hh", {rows});
  p.lengths = from.optional<const int64_t>("lengths", {p.B});
  for (int64_t b = 0; p.lengths && b < p.B; ++b)
    if (p.lengths[b] < 0 || p.lengths[b] > p.T) throw py::value_error("lengths: expected 0 to T");
  p.resets = from.optional<const uint8_t>("resets", {p.T, p.B});
  p.every = from.integer("every");
  if (p.T < 1 || p.H < 1 || p.every < 0 || p.every > p.T) throw py::value_error("every: expected 0 to T");
  const int64_t kept = p.every ? (p.T - 1) / p.every + 2 : p.T + 2;
  for (int i = 0; i < cell.states; ++i) p.states[i] = from.required<S>(state_names[i], {kept, p.B, p.H});
  Sizes saved = saved_shape<S>(cell, p.H);
  saved.insert(saved.begin(), {p.T, p.B});
  p.saved = from.optional<S>("saved", saved);
}

template <class S>
void forward(const CellKernels& cell, const Arrays& from) {
  Forward<S> p{};
  describe(cell, from, p);
  p.output = from.view<S>("output", {p.T, p.B, p.H});
  run(entries<S>(cell).forward, p);
}

template <class S>
void backward(const CellKernels& cell, const Arrays& from, const Arrays& gradients) {
  Backward<S> p{};
  describe(cell, from, p);
  const Sizes states{p.T, p.B, p.H}, state{p.B, p.H};
  const int64_t rows = cell.gates * p.H;
  p.truncate = gradients.integer("truncate");
  p.clip = gradients.number("clip");
  p.d_output = gradients.view<const S>("output", states);
  p.d_cell = gradients.optional<const S>("d_cell", states);
  p.d_input = gradients.view<S>("input", {p.T, p.B, p.I});
  if (!p.d_input.data && p.B) throw py::value_error("input: expected an array");
  p.add_to_input = gradients.truth("add_to_input");
  const Arrays final_state = gradients.group("final_state"), initial_state = gradients.group("initial_state");
  for (int i = 0; i < cell.states; ++i) {
    p.d_final[i] = final_state.required<const S>(state_names[i], state);
    p.d_initial[i] = initial_state.required<S>(state_names[i], state);
    p.d_states[i] = gradients.optional<S>(state_names[i], states);
  }
  p.d_weight_ih = gradients.required<S>("weight_ih", {rows, p.I});
  p.d_weight_hh = gradients.required<S>("weight_hh", {rows, p.H});
  p.d_bias_ih = gradients.optional<S>("bias_ih", {rows});
  p.d_bias_hh = gradients.optional<S>("bias_hh", {rows});
  p.d_gates = gradients.optional<S>("gates", {p.T, p.B, rows});
  p.clipped = p.clip > 0 ? gradients.required<uint8_t>("clipped", {p.T, p.B}) : nullptr;
  if (gradients.has("norms")) {
    const Arrays norms = gradients.group("norms");
    for (int i = 0; i < max_parameters; ++i) p.norms[i] = norms.required<double>(parameter_names[i], {p.T});
  }
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
  m.def("saved_shape", [](const std::string& cell, bool float64, int64_t hidden_size) {
    return py::tuple(py::cast((float64 ? saved_shape<double> : saved_shape<float>)(find_cell(cell.c_str()), hidden_size)));
  });
}

}  // namespace throughtime
