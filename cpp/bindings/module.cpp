// The extension module: a list of registrations.
#include <pybind11/pybind11.h>

#include <exception>
#include <stdexcept>

#include "register.hpp"

// pybind11 reports that Python has no memory for a dict or a tuple as a RuntimeError, whose cause is Python's MemoryError.
static void leave_memory_errors(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const std::runtime_error&) {
    if (!PyErr_Occurred() || !PyErr_ExceptionMatches(PyExc_MemoryError)) throw;
  }
}

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  pybind11::register_local_exception_translator(leave_memory_errors);
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
