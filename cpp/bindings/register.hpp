// The functions that register the module's parts.
#pragma once

#include <pybind11/pybind11.h>

namespace throughtime {

void register_recurrent(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_layer_norm(pybind11::module_& m);
void register_activation(pybind11::module_& m);
void register_training(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_config(pybind11::module_& m);
void register_jax(pybind11::module_& m);  // only if built with jax's headers

}  // namespace throughtime
