// NumPy arrays to checked pointers. These checks protect memory; what a user did wrong is said better in Python, before.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../kernels.hpp"

namespace throughtime {

namespace py = pybind11;
using Sizes = std::vector<int64_t>;

// The named arrays of one problem. An entry that is missing or None is a null pointer. Only NumPy's own arrays are taken:
// pybind11 would convert anything else to a temporary array, which is gone before a kernel reads it.
class Arrays {
 public:
  explicit Arrays(py::dict entries) : entries_(std::move(entries)), read_(std::make_shared<Read>()) {}

  bool has(const char* name) const { return bool(find(name)); }

  // Raises if the caller passed an entry that nothing has read: a misspelt name must not count as a missing one.
  void done() const {
    for (const auto& [key, entry] : entries_)
      if (!entry.is_none() && !read_->has(py::str(key).cast<std::string>()))
        throw py::value_error("unknown entry " + std::string(py::repr(key)));
    for (const auto& [name, group] : read_->groups) group.done();
  }

  // A contiguous array of this shape; S const for what is only read.
  template <class S>
  S* optional(const char* name, const Sizes& shape) const {
    if (!has(name)) return nullptr;
    const py::array array = checked<S>(name, shape);
    int64_t step = sizeof(S);
    for (size_t i = shape.size(); i-- > 0 && array.size(); step *= shape[i])
      if (shape[i] > 1 && array.strides(py::ssize_t(i)) != step) fail(name, "contiguous memory");
    return pointer<S>(array);
  }

  template <class S>
  S* required(const char* name, const Sizes& shape) const {
    if (!has(name)) fail(name, "an array");
    return optional<S>(name, shape);
  }

  // A (T, B, F) array whose features lie side by side.
  template <class S>
  View<S> view(const char* name, const Sizes& shape) const {
    if (!has(name)) return {nullptr, 0, 0};
    const py::array array = checked<S>(name, shape);
    const int64_t item = sizeof(S);
    if ((shape[2] > 1 && array.strides(2) != item) || array.strides(0) % item || array.strides(1) % item)
      fail(name, "contiguous features");
    return {pointer<S>(array), array.strides(0) / item, array.strides(1) / item};
  }

  template <class S>
  View<S> required_view(const char* name, const Sizes& shape) const {
    if (!has(name)) fail(name, "an array");
    return view<S>(name, shape);
  }

  // The length of each of B sequences, or null.
  const int64_t* lengths(const char* name, int64_t T, int64_t B) const {
    const int64_t* found = optional<const int64_t>(name, {B});
    for (int64_t b = 0; found && b < B; ++b)
      if (found[b] < 0 || found[b] > T) fail(name, "0 to T");
    return found;
  }

  // The shape of an array of so many dimensions.
  Sizes shape(const char* name, py::ssize_t rank) const {
    if (!has(name)) fail(name, "an array");
    const py::array array = array_of(name);
    if (array.ndim() != rank) fail(name, "rank " + std::to_string(rank));
    return Sizes(array.shape(), array.shape() + rank);
  }

  bool is_array(const char* name) const { return has(name) && py::isinstance<py::array>(find(name)); }
  bool is_double(const char* name) const {
    if (!has(name)) fail(name, "an array");
    return array_of(name).dtype().equal(py::dtype::of<double>());
  }
  bool truth(const char* name) const { return scalar<bool>(name, "True or False"); }
  double number(const char* name) const { return scalar<double>(name, "a number"); }
  int64_t integer(const char* name) const { return scalar<int64_t>(name, "an integer"); }
  std::string text(const char* name) const { return scalar<std::string>(name, "a string"); }
  Arrays group(const char* name) const {
    const py::handle entries = find(name);
    if (!entries) return Arrays(py::dict());
    if (!py::isinstance<py::dict>(entries)) fail_kind(name, "a dict");
    for (const auto& [known, group] : read_->groups)
      if (known == std::string_view(name)) return group;
    return read_->groups.emplace_back(name, Arrays(py::reinterpret_borrow<py::dict>(entries))).second;
  }

 private:
  // The entries that were read. Copies of one Arrays share it.
  struct Read {
    std::vector<std::string_view> names;
    std::vector<std::pair<std::string_view, Arrays>> groups;
    bool has(std::string_view name) const { return std::find(names.begin(), names.end(), name) != names.end(); }
  };

  // Null if the entry is missing or None.
  py::handle find(const char* name) const {
    const py::handle entry = PyDict_GetItemString(entries_.ptr(), name);
    if (!entry || entry.is_none()) return {};
    if (!read_->has(name)) read_->names.push_back(name);
    return entry;
  }

  [[noreturn]] static void fail(const std::string& name, const std::string& expected) {
    throw py::value_error(name + ": expected " + expected);
  }

  [[noreturn]] void fail_kind(const char* name, const std::string& expected) const {
    throw py::type_error(std::string(name) + ": expected " + expected + ", got " + Py_TYPE(find(name).ptr())->tp_name);
  }

  py::array array_of(const char* name) const {
    if (!py::isinstance<py::array>(find(name))) fail_kind(name, "a NumPy array");
    return py::reinterpret_borrow<py::array>(find(name));
  }

  // Zero where there is none.
  template <class N>
  N scalar(const char* name, const char* expected) const {
    const py::handle entry = find(name);
    if (!entry) return N();
    try {
      return entry.cast<N>();
    } catch (const py::cast_error&) {
      fail_kind(name, expected);
    }
  }

  template <class S>
  py::array checked(const char* name, const Sizes& shape) const {
    const py::array array = array_of(name);
    if (!py::dtype::of<std::remove_const_t<S>>().is(array.dtype()) &&
        !array.dtype().equal(py::dtype::of<std::remove_const_t<S>>()) && !(sizeof(S) == 1 && array.dtype().kind() == 'b'))
      fail(name, "another dtype");
    if (Sizes(array.shape(), array.shape() + array.ndim()) != shape) fail(name, "another shape");
    if (!std::is_const_v<S> && !array.writeable()) fail(name, "a writeable array");
    if (reinterpret_cast<uintptr_t>(array.data()) % alignof(S)) fail(name, "aligned memory");
    return array;
  }

  template <class S>
  static S* pointer(const py::array& array) {
    return const_cast<S*>(static_cast<const S*>(array.data()));
  }

  py::dict entries_;
  std::shared_ptr<Read> read_;
};

}  // namespace throughtime
