// Bindings of embedding and losses, which turn a dict of arrays into a problem, and of optimisers and clipping, which turn a
// list of arrays into segments. If kernels cannot use an array as it is, the latter return False or None before anything is
// written, and Python converts the array or reports the error.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "arrays.hpp"
#include "register.hpp"
#include "run.hpp"

#include "../cpu/system/dispatch.hpp"

namespace throughtime {

namespace {

const TrainingKernels& kernels() { return *level().kernels->training; }

template <class S>
const TrainingEntries<S>& entries() {
  if constexpr (std::is_same_v<S, float>) return kernels().f32;
  else return kernels().f64;
}

bool in_range(const int64_t* indices, int64_t N, int64_t count) {
  bool outside = false;
  for (int64_t n = 0; n < N; ++n) outside |= uint64_t(indices[n]) >= uint64_t(count);
  return !outside;
}

template <class S>
bool embedding_forward(const Arrays& from) {
  EmbeddingForward<S> p{};
  const Sizes shape = from.shape("weight", 2);
  p.N = from.shape("indices", 1)[0], p.count = shape[0], p.F = shape[1];
  p.indices = from.required<const int64_t>("indices", {p.N});
  p.weight = from.required<const S>("weight", shape);
  p.output = from.required<S>("output", {p.N, p.F});
  if (!in_range(p.indices, p.N, p.count)) return false;
  from.done();
  run(entries<S>().embedding_forward, p);
  return true;
}

template <class S>
bool embedding_backward(const Arrays& from) {
  EmbeddingBackward<S> p{};
  const Sizes shape = from.shape("d_weight", 2);
  p.N = from.shape("indices", 1)[0], p.count = shape[0], p.F = shape[1];
  p.indices = from.required<const int64_t>("indices", {p.N});
  p.d_output = from.required<const S>("d_output", {p.N, p.F});
  p.d_weight = from.required<S>("d_weight", shape);
  if (!in_range(p.indices, p.N, p.count)) return false;
  from.done();
  run(entries<S>().embedding_backward, p);
  return true;
}

// Returns the summed loss, the number of its rows, and the first row whose target is no class, or -1.
template <class S>
py::tuple cross_entropy(const Arrays& from) {
  CrossEntropy<S> p{};
  const Sizes shape = from.shape("logits", 2);
  double total = 0;
  p.N = shape[0], p.C = shape[1];
  p.ignore_index = from.integer("ignore_index");
  p.logits = from.required<const S>("logits", shape);
  p.targets = from.required<const int64_t>("targets", {p.N});
  p.d_logits = from.required<S>("d_logits", shape);
  p.total = &total;
  for (int64_t n = 0; n < p.N; ++n) {
    if (p.targets[n] == p.ignore_index) continue;
    if (uint64_t(p.targets[n]) >= uint64_t(p.C)) return py::make_tuple(0.0, 0, n);
    ++p.kept;
  }
  from.done();
  run(entries<S>().cross_entropy, p);
  return py::make_tuple(total, p.kept, -1);
}

template <class S>
py::float_ squared_error(const Arrays& from) {
  SquaredError<S> p{};
  double total = 0;
  p.N = from.shape("prediction", 1)[0];
  p.prediction = from.required<const S>("prediction", {p.N});
  p.target = from.required<const S>("target", {p.N});
  p.d_prediction = from.required<S>("d_prediction", {p.N});
  p.total = &total;
  from.done();
  run(entries<S>().squared_error, p);
  return py::float_(total);
}

// Whether kernels can use an object as it is: a float32 or float64 array, contiguous, aligned, in this machine's byte order.
bool is_plain(py::handle object) {
  if (!py::isinstance<py::array>(object)) return false;
  const auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  const bool is_float = dtype.num() == py::dtype::num_of<float>() || dtype.num() == py::dtype::num_of<double>();
  return is_float && dtype.byteorder() == '=' && (array.flags() & py::array::c_style) &&
         reinterpret_cast<uintptr_t>(array.data()) % size_t(array.itemsize()) == 0;
}

// Whether an object is one writeable int64.
bool is_counter(py::handle object) {
  if (!py::isinstance<py::array>(object)) return false;
  const auto array = py::reinterpret_borrow<py::array>(object);
  return array.dtype().equal(py::dtype::of<int64_t>()) && array.size() == 1 && array.writeable() &&
         reinterpret_cast<uintptr_t>(array.data()) % alignof(int64_t) == 0;
}

// Parameters with their gradients and optimiser states.
class Rows {
 public:
  // Adds (value, gradient, states ..., counter of updates if `counts`); all but the gradient are written to.
  bool add(const py::tuple& row, size_t states, bool counts) {
    if (row.size() != 2 + states + size_t(counts)) return false;
    if (counts && !is_counter(row[2 + states])) return false;
    for (size_t i = 0; i < 2 + states; ++i)
      if (!is_plain(row[i]) || !same_kind(row[i], row[0]) || (i != 1 && !array_of(row[i]).writeable())) return false;
    const py::array value = array_of(row[0]);
    Segment whole{value.size(), value.itemsize() == sizeof(double), pointer(row[0]), pointer(row[1]), {}, 0};
    for (size_t i = 0; i < states; ++i) whole.state[i] = pointer(row[2 + i]);
    if (counts) {
      counters_.push_back(reinterpret_cast<int64_t*>(pointer(row[2 + states])));
      whole.updates = *counters_.back() + 1;
    }
    cut(whole);
    return true;
  }

  // False if one cannot be added.
  bool add_all(const py::list& rows, size_t states, bool counts) {
    return std::all_of(rows.begin(), rows.end(), [&](py::handle row) {
      return py::isinstance<py::tuple>(row) && add(py::reinterpret_borrow<py::tuple>(row), states, counts);
    });
  }

  void give(Segments& to) {
    std::sort(memory_.begin(), memory_.end());
    for (size_t i = 1; i < memory_.size(); ++i) to.overlap |= memory_[i].first < memory_[i - 1].second;
    to.count = int64_t(segments_.size());
    to.data = segments_.data();
  }

  void count_updates() {
    for (int64_t* counter : counters_) ++*counter;
  }

 private:
  static py::array array_of(py::handle object) { return py::reinterpret_borrow<py::array>(object); }
  static char* pointer(py::handle object) { return static_cast<char*>(const_cast<void*>(array_of(object).data())); }

  static bool same_kind(py::handle one, py::handle other) {
    const py::array a = array_of(one), b = array_of(other);
    return a.itemsize() == b.itemsize() && std::equal(a.shape(), a.shape() + a.ndim(), b.shape(), b.shape() + b.ndim());
  }

  static char* offset(const void* array, int64_t bytes) {
    return array ? static_cast<char*>(const_cast<void*>(array)) + bytes : nullptr;
  }

  void cut(const Segment& whole) {
    const int64_t item = whole.is_double ? sizeof(double) : sizeof(float);
    for (int64_t begin = 0; begin < whole.size; begin += segment_size) {
      Segment part = whole;
      part.size = std::min(whole.size - begin, segment_size);
      part.value = offset(whole.value, begin * item);
      part.gradient = offset(whole.gradient, begin * item);
      for (int i = 0; i < 2; ++i) part.state[i] = offset(whole.state[i], begin * item);
      segments_.push_back(part);
    }
    const auto first = reinterpret_cast<uintptr_t>(whole.value);
    if (whole.size) memory_.emplace_back(first, first + uintptr_t(whole.size * item));
  }

  std::vector<Segment> segments_;
  std::vector<std::pair<uintptr_t, uintptr_t>> memory_;  // begin and end of each value
  std::vector<int64_t*> counters_;
};

bool sgd(const py::list& list, double lr, double momentum) {
  Rows rows;
  if (!rows.add_all(list, 1, false)) return false;
  SGDUpdate update{{}, lr, momentum};
  rows.give(update);
  run(kernels().sgd, update);
  return true;
}

bool adam(const py::list& list, double lr, double beta1, double beta2, double eps, double penalty, double decay) {
  Rows rows;
  if (!rows.add_all(list, 2, true)) return false;
  AdamUpdate update{{}, lr, beta1, beta2, eps, penalty, decay};
  rows.give(update);
  run(kernels().adam, update);
  rows.count_updates();
  return true;
}

// Returns the norm of all arrays together, and scales them if it is finite and above `largest`.
py::object clip(const py::list& arrays, double largest) {
  Rows rows;
  for (const py::handle array : arrays)
    if (!rows.add(py::make_tuple(array, array), 0, false)) return py::none();
  double norm = 0;
  GradientNorm measure{{}, &norm};
  rows.give(measure);
  run(kernels().norm, measure);
  const py::float_ result(norm);  // before anything is written, because it may lack memory
  if (norm > largest && norm < HUGE_VAL) run(kernels().scale, GradientScale{measure, largest / norm});
  return result;
}

}  // namespace

void register_training(py::module_& m) {
  m.def("embedding_forward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    return arrays.is_double("weight") ? embedding_forward<double>(arrays) : embedding_forward<float>(arrays);
  });
  m.def("embedding_backward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    return arrays.is_double("d_weight") ? embedding_backward<double>(arrays) : embedding_backward<float>(arrays);
  });
  m.def("cross_entropy", [](const py::dict& problem) {
    const Arrays arrays(problem);
    return arrays.is_double("logits") ? cross_entropy<double>(arrays) : cross_entropy<float>(arrays);
  });
  m.def("squared_error", [](const py::dict& problem) {
    const Arrays arrays(problem);
    return arrays.is_double("prediction") ? squared_error<double>(arrays) : squared_error<float>(arrays);
  });
  m.def("sgd", &sgd);
  m.def("adam", &adam);
  m.def("clip", &clip);
}

}  // namespace throughtime
