// Copies of and elementwise operations on device arrays.
#include "../../cuda/arrays/elementwise.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "register.hpp"
#include "types.hpp"

namespace throughtime {

namespace py = pybind11;

namespace {

void* address(const py::array& array) { return const_cast<void*>(array.data()); }

bool without_gaps(const py::array& array) { return array.flags() & py::array::c_style; }

void expect(bool holds, const char* name, const char* expected) {
  if (!holds) throw py::value_error(std::string(name) + ": expected " + expected);
}

// A pointer to `count` contiguous elements; S is const for arrays that are only read.
template <class S>
S* elements(const char* name, const py::array& array, py::ssize_t count) {
  expect(array.itemsize() == sizeof(S), name, "another dtype");
  expect(array.size() == count, name, "another size");
  expect(without_gaps(array), name, "contiguous memory");
  expect(std::is_const_v<S> || array.writeable(), name, "a writeable array, not a read-only one");
  return static_cast<S*>(address(array));
}

cuda::Pair pair_of(const py::array& to, const py::array& from) {
  const bool same = to.ndim() == from.ndim() && std::equal(to.shape(), to.shape() + to.ndim(), from.shape());
  expect(same, "from", "the shape of to");
  expect(to.itemsize() == from.itemsize() && to.itemsize() <= 8, "from", "the dtype of to");
  expect(to.writeable(), "to", "a writeable array, not a read-only one");
  const auto own = [](const py::ssize_t* values, py::ssize_t rank) { return std::vector<int64_t>(values, values + rank); };
  return {own(to.shape(), to.ndim()),
          own(to.strides(), to.ndim()),
          own(from.strides(), to.ndim()),
          address(to),
          from.data(),
          to.itemsize()};
}

void copy(const py::array& to, const py::array& from, uintptr_t stream) { cuda::copy(pair_of(to, from), stream_of(stream)); }

void copy_bytes(const py::array& to, const py::array& from, uintptr_t stream) {
  expect(to.nbytes() == from.nbytes(), "from", "the bytes of to");
  expect(without_gaps(to) && without_gaps(from), "from", "contiguous memory");
  void* const target = address(to);
  const void* const source = from.data();
  const size_t bytes = size_t(to.nbytes());
  const py::gil_scoped_release unlocked;  // a copy to the host waits for earlier work
  cuda::copy(target, source, bytes, stream_of(stream));
}

void clear(const py::array& to, uintptr_t stream) {
  expect(without_gaps(to), "to", "contiguous memory");
  cuda::fill(address(to), 0, size_t(to.nbytes()), stream_of(stream));
}

void add(const py::array& to, const py::array& from, const std::string& type, uintptr_t stream) {
  const cuda::Pair pair = pair_of(to, from);
  of_type(type, [&](auto zero) {
    expect(sizeof zero == pair.item, "to", "another dtype");
    cuda::add<decltype(zero)>(pair, stream_of(stream));
  });
}

void drop(const py::array& to, const py::array& from, const py::object& mask, double scale, const std::string& type,
          uintptr_t stream) {
  const py::ssize_t count = to.size();
  const auto* dropped = mask.is_none() ? nullptr : elements<const uint8_t>("mask", mask.cast<py::array>(), count);
  const auto run = [&](auto zero) {
    using S = decltype(zero);
    cuda::drop(elements<S>("to", to, count), elements<const S>("from", from, count), dropped, scale, count, stream_of(stream));
  };
  if (type == "float64") run(double{});
  else of_type(type, run);
}

void draw_mask(const py::array& mask, uint64_t threshold, uint64_t key0, uint64_t key1, uint64_t which, uint64_t number,
               uintptr_t stream) {
  const cuda::Draw draw{{key0, key1}, which, number};
  cuda::draw_mask(elements<uint8_t>("mask", mask, mask.size()), threshold, draw, mask.size(), stream_of(stream));
}

void finite_rows(const py::array& finite, const py::array& from, const std::string& type, uintptr_t stream) {
  const py::ssize_t steps = finite.size(), count = steps ? from.size() / steps : 0;
  of_type(type, [&](auto zero) {
    const auto* rows = elements<const decltype(zero)>("from", from, steps * count);
    cuda::finite_rows(elements<uint8_t>("finite", finite, steps), rows, steps, count, stream_of(stream));
  });
}

}  // namespace

void register_cuda_elementwise(py::module_& m) {
  m.def("copy", copy);
  m.def("copy_bytes", copy_bytes);
  m.def("clear", clear);
  m.def("add", add);
  m.def("drop", drop);
  m.def("draw_mask", draw_mask);
  m.def("finite_rows", finite_rows);
}

}  // namespace throughtime
