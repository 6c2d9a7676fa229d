// Binding of residual add and LayerNorm: turns a dict of arrays into a problem.
#include "layer_norm.hpp"

#include "register.hpp"
#include "run.hpp"

#include "../cpu/system/dispatch.hpp"

namespace throughtime {

namespace {

template <class S>
const LayerNormEntries<S>& entries() {
  if constexpr (std::is_same_v<S, float>) return level().kernels->layer_norm->f32;
  else return level().kernels->layer_norm->f64;
}

template <class Problem>
void run_read(const Arrays& from, void (*entry)(const Problem&, const Host&)) {
  Problem p{};
  read(from, p);
  from.done();
  run(entry, p);
}

}  // namespace

void register_layer_norm(py::module_& m) {
  m.def("layer_norm_forward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    if (arrays.is_double("x")) run_read(arrays, entries<double>().forward);
    else run_read(arrays, entries<float>().forward);
  });
  m.def("layer_norm_backward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    if (arrays.is_double("sum")) run_read(arrays, entries<double>().backward);
    else run_read(arrays, entries<float>().backward);
  });
}

}  // namespace throughtime
