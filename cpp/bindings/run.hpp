// Runs a kernel without the GIL.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include "../cpu/system/host.hpp"

namespace throughtime {

// Takes the GIL back. During the interpreter's shutdown, Python before 3.14 ends a daemon thread in here, by an unwinding that
// would abort at the first destructor. Such a thread sleeps instead until the process is gone.
inline void take_gil(PyThreadState* state) {
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(state);
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  PyEval_RestoreThread(state);
#endif
}

// Runs the kernel without the GIL, except to check for signals now and then. `operations` and `terms`: see Call.
template <class Problem>
void run(void (*kernel)(const Problem&, const Host&), const Problem& problem, double operations = 0, int terms = get_terms()) {
  PyThreadState* state = PyEval_SaveThread();
  bool stopped = false;
  try {
    Call call(
        [&state] {
          take_gil(state);
          const bool interrupted = PyErr_CheckSignals() != 0;
          state = PyEval_SaveThread();
          return interrupted;
        },
        operations, terms);
    kernel(problem, call.host());
    stopped = call.stopped();
  } catch (...) {
    take_gil(state);
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    throw;
  }
  take_gil(state);
  if (!stopped) return;
  if (PyErr_Occurred()) throw pybind11::error_already_set();
  throw Forked();
}

}  // namespace throughtime
