// Binding of one layer and direction, forward and backward: turns a dict of arrays into a problem, run without the GIL.
#include "arrays.hpp"
#include "cpu_cells.hpp"
#include "problem.hpp"
#include "register.hpp"
#include "run.hpp"

#include <pybind11/stl.h>

#include <cstring>
#include <memory>

namespace throughtime {

namespace {

template <class S>
void describe(const CellKernels& cell, const Arrays& from, Recurrence<S>& p) {
  describe(cell, from, [&cell](int64_t B, int64_t H) { return saved_shape<S>(cell, B, H); }, p);
  if (p.B < 1 || p.I < 1) throw py::value_error("x: expected at least one sequence and one feature");
  p.lengths = from.lengths("lengths", p.T, p.B);
}

template <class S>
void forward(const CellKernels& cell, const Arrays& from) {
  Forward<S> p{};
  describe(cell, from, p);
  p.output = from.view<S>("output", {p.T, p.B, p.P});
  const int terms = terms_of(from, get_terms());
  from.done();
  run(entries<S>(cell).forward, p, operations(cell, p), terms);
}

template <class S>
void describe_flow(const Arrays& from, Backward<S>& p) {
  p.exponent = from.required<int32_t>("exponent", {p.T, p.B});
  p.d_output_exponent = from.required<const int32_t>("d_output_exponent", {p.T, p.B});
  p.log10_sequence = from.required<double>("log10_sequence", {p.T, p.B});
  p.log10_unit = from.required<double>("log10_unit", {p.T, p.P});
  if (!p.d_output.data) throw py::value_error("d_output: expected an array");
}

template <class S>
void backward(const CellKernels& cell, const Arrays& from, const Arrays& gradients) {
  Backward<S> p{};
  describe(cell, from, p);
  describe_gradients(cell, gradients, p);
  if (gradients.has("exponent")) describe_flow(gradients, p);
  const int terms = terms_of(from, get_terms());
  from.done();
  gradients.done();
  run(entries<S>(cell).backward, p, 2 * operations(cell, p), terms);
}

// An array in the pool's memory, which returns there with the last reference.
py::array empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  if (!std::strchr("biufc", dtype.kind())) throw py::type_error("dtype: expected numbers, got " + std::string(py::str(dtype)));
  const auto array = [&] { return "an array of shape " + std::string(py::str(py::tuple(py::cast(shape)))); };
  py::ssize_t bytes = dtype.itemsize();
  for (const py::ssize_t size : shape) {
    if (size < 0) throw py::value_error("shape: expected sizes of 0 or more, got " + array());
    if (__builtin_mul_overflow(bytes, size, &bytes)) throw py::value_error("shape: no memory can hold " + array());
  }
  std::unique_ptr<void, decltype(&pool_release)> block(nullptr, pool_release);
  try {
    block.reset(pool_acquire(size_t(bytes)));
  } catch (const OutOfMemory& error) {
    const std::string text = std::string(error.what()) + ", " + array() + " and dtype " + std::string(py::str(dtype));
    PyErr_SetString(PyExc_MemoryError, text.c_str());
    throw py::error_already_set();
  }
  const py::capsule owner(block.get(), pool_release);
  return py::array(dtype, shape, block.release(), owner);
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
  m.def("empty", &empty);
  m.def("parameter_shapes", [](const std::string& cell, int64_t I, int64_t H, int64_t P) {
    py::dict shapes;
    for (const Named& parameter : parameters(find_cell(cell.c_str()), I, H, P))
      if (parameter.name) shapes[parameter.name] = py::tuple(py::cast(parameter.shape));
    return shapes;
  });
  // Without the batch size, which may be a symbol in Python: (units, saved, lanes).
  m.def("saved_shape", [](const std::string& cell, bool float64, int64_t hidden_size) {
    const CellKernels& found = find_cell(cell.c_str());
    Sizes shape = (float64 ? saved_shape<double> : saved_shape<float>)(found, 1, hidden_size);
    shape.erase(shape.begin() + (found.whole_rows ? 0 : 1));
    return py::tuple(py::cast(shape));
  });
  m.def("sees_whole_rows", [](const std::string& cell) { return find_cell(cell.c_str()).whole_rows; });
}

}  // namespace throughtime
