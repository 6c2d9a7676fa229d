// The extension module of the CUDA backend: a list of registrations.
#include "register.hpp"

PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
  throughtime::register_cuda_memory(m);
  throughtime::register_cuda_dlpack(m);
  throughtime::register_cuda_elementwise(m);
  throughtime::register_cuda_layer_norm(m);
  throughtime::register_cuda_recurrent(m);
}
