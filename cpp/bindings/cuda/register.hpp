// One registration function per file of the CUDA bindings.
#pragma once

#include <pybind11/pybind11.h>

namespace throughtime {

void register_cuda_memory(pybind11::module_& m);
void register_cuda_dlpack(pybind11::module_& m);
void register_cuda_elementwise(pybind11::module_& m);
void register_cuda_recurrent(pybind11::module_& m);
void register_cuda_layer_norm(pybind11::module_& m);

}  // namespace throughtime
