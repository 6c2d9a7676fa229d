// Devices, and memory on them. A device array is a NumPy array with a device address: its shape, strides and views are valid,
// but NumPy cannot access its contents. Python wraps it (throughtime.cuda) to prevent reads.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "../../cuda/system/runtime.hpp"
#include "register.hpp"
#include "types.hpp"

namespace throughtime {

namespace py = pybind11;

namespace {

struct Block {
  void* data;
  cuda::Stream stream;
};

// Allocates in stream order; the last reference returns the memory to the pool in stream order.
py::array empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype, uintptr_t stream) {
  size_t bytes = size_t(dtype.itemsize());
  for (const py::ssize_t size : shape) bytes *= size_t(size);
  auto block = std::make_unique<Block>(Block{cuda::allocate(bytes ? bytes : 1, stream_of(stream)), stream_of(stream)});
  void* const data = block->data;
  const py::capsule owner(block.release(), [](void* self) {
    const std::unique_ptr<Block> block(static_cast<Block*>(self));
    cuda::release(block->data, block->stream);
  });
  return py::array(dtype, shape, data, owner);
}

}  // namespace

void register_cuda_memory(py::module_& m) {
  m.attr("is_stand_in") = cuda::is_stand_in;
  m.def("device_count", cuda::device_count);
  m.def("device_name", [] { return cuda::device().name; });
  m.def("load_blas", cuda::load_blas);
  m.def("empty", empty);
  m.def("empty_cache", cuda::empty_cache);
  m.def("synchronise", [](uintptr_t stream) {
    const py::gil_scoped_release unlocked;
    cuda::synchronise(stream_of(stream));
  });
}

}  // namespace throughtime
