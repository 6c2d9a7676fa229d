// Copies and element-by-element operations on arrays of the device. Shapes were compared in Python.
#include "../../cuda/elementwise.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "register.hpp"

namespace throughtime {

namespace py = pybind11;

namespace {

cuda::Queue queue_of(uintptr_t stream) { return {reinterpret_cast<void*>(stream)}; }

void* address(const py::array& array) { return const_cast<void*>(array.data()); }

cuda::Pair pair_of(const py::array& to, const py::array& from) {
  if (to.ndim() != from.ndim() || !std::equal(to.shape(), to.shape() + to.ndim(), from.shape()))
    throw py::value_error("from: expected the shape of to");
  if (to.itemsize() != from.itemsize() || to.itemsize() > 8) throw py::value_error("from: expected the dtype of to");
  const auto own = [](const py::ssize_t* values, py::ssize_t rank) { return std::vector<int64_t>(values, values + rank); };
  return {own(to.shape(), to.ndim()),
          own(to.strides(), to.ndim()),
          own(from.strides(), to.ndim()),
          address(to),
          from.data(),
          to.itemsize()};
}

// Calls one(S{}) with the type that is called so.
template <class One>
void of_type(const std::string& type, const One& one) {
  if (type == "float32") one(float{});
  else if (type == "bfloat16") one(cuda::BFloat16{});
  else if (type == "float16") one(cuda::Float16{});
  else throw py::value_error("type: expected float32, bfloat16 or float16, got " + type);
}

void drop(const py::array& to, const py::array& from, const py::object& mask, double scale, const std::string& type,
          uintptr_t stream) {
  const auto* dropped = mask.is_none() ? nullptr : static_cast<const uint8_t*>(address(mask.cast<py::array>()));
  const auto run = [&](auto zero) {
    using S = decltype(zero);
    cuda::drop(static_cast<S*>(address(to)), static_cast<const S*>(from.data()), dropped, scale, to.size(), queue_of(stream));
  };
  if (type == "float64") run(double{});
  else of_type(type, run);
}

}  // namespace

void register_cuda_elementwise(py::module_& m) {
  m.def("copy",
        [](const py::array& to, const py::array& from, uintptr_t stream) { cuda::copy(pair_of(to, from), queue_of(stream)); });
  m.def("copy_bytes", [](const py::array& to, const py::array& from, uintptr_t stream) {
    if (to.nbytes() != from.nbytes()) throw py::value_error("from: expected the bytes of to");
    void* const target = address(to);
    const size_t bytes = size_t(to.nbytes());
    const py::gil_scoped_release unlocked;  // to the host it waits for the work before
    cuda::copy(target, from.data(), bytes, queue_of(stream));
  });
  m.def("clear",
        [](const py::array& to, uintptr_t stream) { cuda::fill(address(to), 0, size_t(to.nbytes()), queue_of(stream)); });
  m.def("add", [](const py::array& to, const py::array& from, const std::string& type, uintptr_t stream) {
    const cuda::Pair pair = pair_of(to, from);
    of_type(type, [&](auto zero) { cuda::add<decltype(zero)>(pair, queue_of(stream)); });
  });
  m.def("drop", drop);
  m.def("finite_rows", [](const py::array& finite, const py::array& from, const std::string& type, uintptr_t stream) {
    const int64_t steps = finite.size();
    of_type(type, [&](auto zero) {
      using S = decltype(zero);
      cuda::finite_rows(static_cast<uint8_t*>(address(finite)), static_cast<const S*>(from.data()), steps,
                        steps ? from.size() / steps : 0, queue_of(stream));
    });
  });
}

}  // namespace throughtime
