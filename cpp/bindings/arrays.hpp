// Converts NumPy arrays to checked pointers. The checks protect memory; Python reports user errors earlier, and better.
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

// The named arrays of one problem. An entry that is missing or None is a null pointer. Only NumPy arrays are accepted: pybind11
// would convert anything else to a temporary array, which is gone before a kernel reads it.
class Arrays {
 public:
  explicit Arrays(py::dict entries) : contents_(std::make_shared<Contents>(std::move(entries))) {}

  bool has(const char* name) const { return bool(find(name)); }

  // Raises if the caller passed an entry that nothing has read: a misspelt name must not count as a missing one.
  void done() const {
    for (const Entry& entry : contents_->entries)
      if (!entry.read) throw py::value_error("unknown entry " + std::string(py::repr(entry.key)));
    for (const auto& [name, group] : contents_->groups) group.done();
  }

  // A contiguous array of this shape; S is const if it is only read.
  template <class S>
  S* optional(const char* name, const Sizes& shape) const {
    const py::handle entry = find(name);
    if (!entry) return nullptr;
    const py::array array = checked<S>(name, entry, shape);
    int64_t step = sizeof(S);
    for (size_t i = shape.size(); i-- > 0 && array.size(); step *= shape[i])
      if (shape[i] > 1 && array.strides(py::ssize_t(i)) != step) fail(name, "contiguous memory");
    return pointer<S>(array);
  }

  template <class S>
  S* required(const char* name, const Sizes& shape) const {
    S* const found = optional<S>(name, shape);
    if (!found && !has(name)) fail(name, "an array");
    return found;
  }

  // A (T, B, F) array with contiguous features.
  template <class S>
  View<S> view(const char* name, const Sizes& shape) const {
    const py::handle entry = find(name);
    if (!entry) return {nullptr, 0, 0};
    const py::array array = checked<S>(name, entry, shape);
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

  // The shape of an array of rank `rank`.
  Sizes shape(const char* name, py::ssize_t rank) const {
    const py::array array = array_of(name, find(name));
    if (array.ndim() != rank) fail(name, "rank " + std::to_string(rank));
    return Sizes(array.shape(), array.shape() + rank);
  }

  bool is_array(const char* name) const {
    const py::handle entry = find(name);
    return entry && py::isinstance<py::array>(entry);
  }
  bool is_double(const char* name) const { return array_of(name, find(name)).dtype().equal(py::dtype::of<double>()); }
  bool truth(const char* name) const { return scalar<bool>(name, "True or False"); }
  double number(const char* name) const { return scalar<double>(name, "a number"); }
  int64_t integer(const char* name) const { return scalar<int64_t>(name, "an integer"); }
  std::string text(const char* name) const { return scalar<std::string>(name, "a string"); }
  Arrays group(const char* name) const {
    const py::handle entry = find(name);
    if (!entry) return Arrays(py::dict());
    if (!py::isinstance<py::dict>(entry)) fail_kind(name, entry, "a dict");
    for (const auto& [known, group] : contents_->groups)
      if (known == std::string_view(name)) return group;
    return contents_->groups.emplace_back(name, Arrays(py::reinterpret_borrow<py::dict>(entry))).second;
  }

 private:
  struct Entry {
    py::handle key, value;
    std::string_view name;  // empty unless the key is a str
    bool read = false;
  };

  // The entries that are not None, listed once: looking up a C string in a dict makes a str of it first, which took a third of
  // a small call. Copies of one Arrays share them.
  struct Contents {
    explicit Contents(py::dict from) : dict(std::move(from)) {
      entries.reserve(dict.size());
      for (const auto& [key, value] : dict)
        if (!value.is_none()) entries.push_back({key, value, text_of(key)});
    }

    static std::string_view text_of(py::handle key) {
      Py_ssize_t size = 0;
      const char* const text = PyUnicode_Check(key.ptr()) ? PyUnicode_AsUTF8AndSize(key.ptr(), &size) : "";
      if (!text) throw py::error_already_set();
      return {text, size_t(size)};
    }

    py::dict dict;
    std::vector<Entry> entries;
    std::vector<std::pair<std::string_view, Arrays>> groups;
  };

  // Null if the entry is missing or None.
  py::handle find(std::string_view name) const {
    for (Entry& entry : contents_->entries)
      if (entry.name == name) {
        entry.read = true;
        return entry.value;
      }
    return {};
  }

  [[noreturn]] static void fail(const std::string& name, const std::string& expected) {
    throw py::value_error(name + ": expected " + expected);
  }

  [[noreturn]] static void fail_kind(const char* name, py::handle entry, const std::string& expected) {
    throw py::type_error(std::string(name) + ": expected " + expected + ", got " + Py_TYPE(entry.ptr())->tp_name);
  }

  static py::array array_of(const char* name, py::handle entry) {
    if (!entry) fail(name, "an array");
    if (!py::isinstance<py::array>(entry)) fail_kind(name, entry, "a NumPy array");
    return py::reinterpret_borrow<py::array>(entry);
  }

  // Zero if the entry is missing.
  template <class N>
  N scalar(const char* name, const char* expected) const {
    const py::handle entry = find(name);
    if (!entry) return N();
    try {
      return entry.cast<N>();
    } catch (const py::cast_error&) {
      fail_kind(name, entry, expected);
    }
  }

  template <class S>
  static py::array checked(const char* name, py::handle entry, const Sizes& shape) {
    const py::array array = array_of(name, entry);
    if (!py::dtype::of<std::remove_const_t<S>>().is(array.dtype()) &&
        !array.dtype().equal(py::dtype::of<std::remove_const_t<S>>()) && !(sizeof(S) == 1 && array.dtype().kind() == 'b'))
      fail(name, "another dtype");
    if (!std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) fail(name, "another shape");
    if (!std::is_const_v<S> && !array.writeable()) fail(name, "a writeable array");
    if (reinterpret_cast<uintptr_t>(array.data()) % alignof(S)) fail(name, "aligned memory");
    return array;
  }

  template <class S>
  static S* pointer(const py::array& array) {
    return const_cast<S*>(static_cast<const S*>(array.data()));
  }

  std::shared_ptr<Contents> contents_;
};

}  // namespace throughtime
