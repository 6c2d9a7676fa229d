// What the module is made of.
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
void register_jax(pybind11::module_& m);  // where jax's headers were there

}  // namespace throughtime
