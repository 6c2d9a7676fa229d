// Imports and exports device arrays: DLPack's capsules (the ABI of dlpack.h, before 1.0 and 1.0), and any pointer with an
// owner. An array is a NumPy array as in memory.cpp, plus the name of its type, because NumPy has no bfloat16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "../../cuda/system/runtime.hpp"
#include "register.hpp"

namespace throughtime {

namespace py = pybind11;

namespace {

struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: contiguous
  uint64_t byte_offset;
};
struct DLManagedTensor {
  static constexpr const char *name = "dltensor", *used = "used_dltensor";
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};
struct DLManagedTensorVersioned {
  static constexpr const char *name = "dltensor_versioned", *used = "used_dltensor_versioned";
  uint32_t major, minor;
  void* context;
  void (*deleter)(DLManagedTensorVersioned*);
  uint64_t flags;
  DLTensor tensor;
};
constexpr uint64_t read_only = 1;

struct Kind {
  uint8_t code;
  const char* name;
};
constexpr Kind kinds[] = {{0, "int"}, {1, "uint"}, {2, "float"}, {4, "bfloat"}, {6, "bool"}};

// The current device; the stand-in's memory is the CPU's.
DLDevice own_device() { return {cuda::is_stand_in ? 1 : 2, cuda::current_device()}; }

std::string type_name(DLDataType type) {
  for (const Kind& kind : kinds)
    if (kind.code == type.code && type.lanes == 1) {
      if (type.bits % 8 || type.bits > 64 || type.bits < (type.code == 2 || type.code == 4 ? 16 : 8)) break;
      return type.code == 6 ? "bool" : kind.name + std::to_string(int(type.bits));
    }
  throw py::type_error("DLPack: numbers of code " + std::to_string(int(type.code)) + ", " + std::to_string(int(type.bits)) +
                       " bits, " + std::to_string(int(type.lanes)) + " lanes");
}

DLDataType type_of(const std::string& name, uint8_t bits) {
  for (const Kind& kind : kinds)
    if (name.compare(0, name.find_first_of("0123456789"), kind.name) == 0) return {kind.code, bits, 1};
  throw py::type_error("DLPack has no " + name);
}

std::string shown_as(const std::string& type) { return type == "bfloat16" || type == "float16" ? "uint16" : type; }

template <class Managed>
py::object take(PyObject* capsule) {
  auto* const managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::name));
  if (!managed) throw py::error_already_set();
  const DLTensor& tensor = managed->tensor;
  const std::string type = type_name(tensor.dtype);
  const py::dtype dtype(shown_as(type));
  const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<py::ssize_t> strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i])
    strides[i] = dtype.itemsize() * (tensor.strides ? tensor.strides[i] : step);
  const DLDevice device = tensor.device;
  const py::capsule owner(managed, [](void* self) {
    auto* const taken = static_cast<Managed*>(self);
    if (taken->deleter) taken->deleter(taken);
  });
  PyCapsule_SetName(capsule, Managed::used);
  py::array array(dtype, shape, strides, static_cast<char*>(tensor.data) + tensor.byte_offset, owner);
  if constexpr (requires { managed->flags; })
    if (managed->flags & read_only) array.attr("setflags")(py::arg("write") = false);
  return py::make_tuple(array, type, device.type, device.id);
}

py::object from_dlpack(const py::object& capsule) {
  PyObject* const given = capsule.ptr();
  if (PyCapsule_IsValid(given, DLManagedTensorVersioned::name)) {
    auto* const managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(given, DLManagedTensorVersioned::name));
    if (managed->major > 1) throw py::buffer_error("DLPack: version " + std::to_string(managed->major) + ", expected 1");
    return take<DLManagedTensorVersioned>(given);
  }
  if (PyCapsule_IsValid(given, DLManagedTensor::name)) return take<DLManagedTensor>(given);
  throw py::type_error("DLPack: expected a capsule that nobody has used");
}

template <class Managed>
struct Export {
  Managed managed{};
  std::vector<int64_t> shape, strides;
  py::array array;
};

template <class Managed>
void give_back(Managed* managed) {
  if (!Py_IsInitialized()) return;
  const py::gil_scoped_acquire lock;
  delete static_cast<Export<Managed>*>(managed->context);
}

template <class Managed>
py::object give(const py::array& array, const std::string& type) {
  auto made = std::make_unique<Export<Managed>>();
  made->array = array;
  made->shape.assign(array.shape(), array.shape() + array.ndim());
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (array.strides(i) % array.itemsize()) throw py::buffer_error("DLPack: strides are not whole elements");
    made->strides.push_back(array.strides(i) / array.itemsize());
  }
  Managed& managed = made->managed;
  managed.tensor = {const_cast<void*>(array.data()),
                    own_device(),
                    int32_t(array.ndim()),
                    type_of(type, uint8_t(8 * array.itemsize())),
                    made->shape.data(),
                    made->strides.data(),
                    0};
  managed.deleter = give_back<Managed>;
  if constexpr (requires { managed.flags; }) managed.major = 1, managed.flags = array.writeable() ? 0 : read_only;
  PyObject* const capsule = PyCapsule_New(&managed, Managed::name, [](PyObject* self) {
    if (!PyCapsule_IsValid(self, Managed::name)) return;  // consumed: the consumer deletes the tensor
    give_back(static_cast<Managed*>(PyCapsule_GetPointer(self, Managed::name)));
  });
  if (!capsule) throw py::error_already_set();
  managed.context = made.release();
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void register_cuda_dlpack(py::module_& m) {
  m.def("dlpack_device", [] { return py::make_tuple(own_device().type, own_device().id); });
  m.def("from_dlpack", from_dlpack);
  m.def("to_dlpack", [](const py::array& array, const std::string& type, bool versioned) {
    return (versioned ? give<DLManagedTensorVersioned> : give<DLManagedTensor>)(array, type);
  });
  m.def("view",
        [](uintptr_t data, const std::vector<py::ssize_t>& shape, const std::vector<py::ssize_t>& strides, const py::dtype& dtype,
           const py::object& owner) { return py::array(dtype, shape, strides, reinterpret_cast<void*>(data), owner); });
  m.def("order", [](uintptr_t earlier, uintptr_t later) {
    cuda::wait({reinterpret_cast<void*>(later)}, {reinterpret_cast<void*>(earlier)});
  });
}

}  // namespace throughtime
