// Residual add and LayerNorm on the device: makes problems of dicts of arrays.
#include "../../cuda/rowwise/layer_norm.hpp"

#include "../layer_norm.hpp"
#include "register.hpp"
#include "types.hpp"

namespace throughtime {

namespace {

template <class Problem>
Problem read_of_device(const Arrays& from) {
  Problem p{};
  read(from, p);
  if (p.F > INT32_MAX) throw py::value_error("F: expected less than 2^31");
  if (p.N > INT32_MAX) throw py::value_error("N: expected less than 2^31");
  return p;
}

template <class S>
void forward(const Arrays& from) {
  const auto p = read_of_device<cuda::LayerNormForward<S>>(from);
  const cuda::Stream stream = stream_of(uintptr_t(from.integer("stream")));
  from.done();
  const py::gil_scoped_release unlocked;
  cuda::layer_norm_forward(p, stream);
}

template <class S>
void backward(const Arrays& from) {
  const auto p = read_of_device<cuda::LayerNormBackward<S>>(from);
  const int64_t blocks = from.integer("blocks");
  const cuda::Stream stream = stream_of(uintptr_t(from.integer("stream")));
  from.done();
  const py::gil_scoped_release unlocked;
  cuda::layer_norm_backward(p, blocks, stream);
}

}  // namespace

void register_cuda_layer_norm(py::module_& m) {
  m.def("layer_norm_forward", [](const py::dict& problem) {
    const Arrays from(problem);
    of_type(from.text("type"), [&](auto zero) { forward<decltype(zero)>(from); });
  });
  m.def("layer_norm_backward", [](const py::dict& problem) {
    const Arrays from(problem);
    of_type(from.text("type"), [&](auto zero) { backward<decltype(zero)>(from); });
  });
}

}  // namespace throughtime
