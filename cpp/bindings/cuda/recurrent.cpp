// Forward and backward of one layer and direction on the device: makes a problem of a dict of arrays and queues its work.
#include <pybind11/stl.h>

#include "types.hpp"

#include "../problem.hpp"
#include "register.hpp"

#include "../../cuda/recurrent/kernels.hpp"

namespace throughtime {

namespace {

using Cell = cuda::CellKernels;

const Cell& find(const std::string& name) {
  for (int i = 0; i < cuda::cell_count; ++i)
    if (name == cuda::cells[i].name) return cuda::cells[i];
  throw py::value_error("no cell is named " + name);
}

Sizes saved_shape(const Cell& cell, int64_t B, int64_t H) { return {B, cell.saved, H}; }

cuda::Mode find_mode(const std::string& name) {
  if (name == "free") return cuda::Mode::free;
  if (name == "stepwise") return cuda::Mode::stepwise;
  if (name == "cluster") return cuda::Mode::cluster;
  if (name == "grid") return cuda::Mode::grid;
  throw py::value_error("mode: expected free, stepwise, cluster or grid, got " + name);
}

cuda::Call describe_call(const Arrays& from) {
  cuda::Call call{stream_of(uintptr_t(from.integer("stream")))};
  call.terms = terms_of(from, call.terms);
  if (from.has("mode")) call.mode = find_mode(from.text("mode"));
  call.chunk = from.integer("chunk");
  call.multiprocessors = int(from.integer("multiprocessors"));
  call.shared_bytes = from.integer("shared_bytes");
  if (call.chunk < 0) throw py::value_error("chunk: expected 0 or more");
  return call;
}

template <class S>
void describe_problem(const Cell& cell, const Arrays& from, Recurrence<S>& p) {
  const Sizes x = from.shape("x", 3);
  if (x[1] < 1 || x[2] < 1) throw py::value_error("x: expected at least one sequence and one feature");
  describe(cell, from, [&cell](int64_t B, int64_t H) { return saved_shape(cell, B, H); }, p);
  p.lengths = from.optional<const int64_t>("lengths", {p.B});
}

template <class S, class Problem>
void run(void (*kernel)(const Problem&, const cuda::Call&), const Problem& problem, const cuda::Call& call) {
  const py::gil_scoped_release unlocked;
  kernel(problem, call);
}

template <class S>
void forward(const Cell& cell, const cuda::Entries<S>& entries, const Arrays& from) {
  Forward<S> p{};
  describe_problem(cell, from, p);
  p.output = from.view<S>("output", {p.T, p.B, p.P});
  const cuda::Call call = describe_call(from);
  from.done();
  run<S>(entries.forward, p, call);
}

template <class S>
void backward(const Cell& cell, const cuda::Entries<S>& entries, const Arrays& from, const Arrays& gradients) {
  Backward<S> p{};
  describe_problem(cell, from, p);
  if (gradients.has("exponent")) throw py::value_error("exponent: the flow of the gradient is not found on CUDA");
  describe_gradients(cell, gradients, p);
  const cuda::Call call = describe_call(from);
  from.done();
  gradients.done();
  run<S>(entries.backward, p, call);
}

// Calls take(cell, entries) with the entries of the problem's type.
template <class Take>
void with_entries(const std::string& name, const Arrays& from, const Take& take) {
  const Cell& cell = find(name);
  of_type(from.has("type") ? from.text("type") : "float32", [&](auto zero) {
    using S = decltype(zero);
    if constexpr (std::is_same_v<S, float>) take(cell, cell.f32);
    else if constexpr (std::is_same_v<S, cuda::BFloat16>) take(cell, cell.bf16);
    else take(cell, cell.f16);
  });
}

}  // namespace

void register_cuda_recurrent(py::module_& m) {
  m.def("forward", [](const std::string& cell, const py::dict& problem) {
    const Arrays from(problem);
    with_entries(cell, from, [&](const Cell& found, const auto& entries) { forward(found, entries, from); });
  });
  m.def("backward", [](const std::string& cell, const py::dict& problem, const py::dict& gradients) {
    const Arrays from(problem);
    with_entries(cell, from, [&](const Cell& found, const auto& entries) { backward(found, entries, from, Arrays(gradients)); });
  });
  m.def("saved_shape",
        [](const std::string& cell, int64_t hidden_size) { return py::make_tuple(find(cell).saved, hidden_size); });
}

}  // namespace throughtime
