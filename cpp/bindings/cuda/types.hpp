// Conversions from Python: tensor types (16-bit floats are uint16 in NumPy) and streams.
#pragma once

#include <pybind11/numpy.h>

#include <string>
#include <type_traits>

#include "../../cuda/system/runtime.hpp"

namespace pybind11::detail {

template <class S>
  requires std::is_same_v<S, throughtime::cuda::BFloat16> || std::is_same_v<S, throughtime::cuda::Float16>
struct npy_format_descriptor<S> {
  static constexpr auto name = const_name("numpy.uint16");
  static pybind11::dtype dtype() { return pybind11::dtype::of<uint16_t>(); }
};

}  // namespace pybind11::detail

namespace throughtime {

inline cuda::Stream stream_of(uintptr_t stream) { return {reinterpret_cast<void*>(stream)}; }

// Calls one(S{}) with the type of this name.
template <class One>
void of_type(const std::string& type, const One& one) {
  if (type == "float32") one(float{});
  else if (type == "bfloat16") one(cuda::BFloat16{});
  else if (type == "float16") one(cuda::Float16{});
  else throw pybind11::value_error("type: expected float32, bfloat16 or float16, got " + type);
}

}  // namespace throughtime
