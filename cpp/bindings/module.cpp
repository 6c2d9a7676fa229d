// The extension module: a list of registrations.
#include "register.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  throughtime::register_recurrent(m);
  throughtime::register_attention(m);
  throughtime::register_layer_norm(m);
  throughtime::register_activation(m);
  throughtime::register_training(m);
  throughtime::register_linear(m);
  throughtime::register_config(m);
  throughtime::register_jax(m);
  m.attr("version") = TT_VERSION;
}
