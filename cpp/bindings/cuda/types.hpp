// 16-bit tensors reach NumPy as arrays of their bits.
#pragma once

#include <pybind11/numpy.h>

#include <type_traits>

#include "../../cuda/types.hpp"

namespace pybind11::detail {

template <class S>
  requires std::is_same_v<S, throughtime::cuda::BFloat16> || std::is_same_v<S, throughtime::cuda::Float16>
struct npy_format_descriptor<S> {
  static constexpr auto name = const_name("numpy.uint16");
  static pybind11::dtype dtype() { return pybind11::dtype::of<uint16_t>(); }
};

}  // namespace pybind11::detail
