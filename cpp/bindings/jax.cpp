// forward and backward of one layer and direction as XLA calls, for jax. They run on XLA's threads without the GIL; errors are
// returned, not thrown. Operands and results come in a fixed order; python/throughtime/jax/kernels.py is the other side.
#include "cpu_cells.hpp"
#include "register.hpp"

#include <algorithm>
#include <stdexcept>
#include <string_view>

#include "../cpu/system/host.hpp"
#include "xla/ffi/api/ffi.h"

namespace throughtime {

namespace {

namespace ffi = xla::ffi;

ffi::AnyBuffer buffer(const ffi::RemainingArgs& all, size_t i) { return all.get<ffi::AnyBuffer>(i).value(); }
ffi::AnyBuffer buffer(const ffi::RemainingRets& all, size_t i) { return *all.get<ffi::AnyBuffer>(i).value(); }

template <class S>
constexpr ffi::DataType data_type = std::is_same_v<S, float> ? ffi::F32 : ffi::F64;

// The buffers of a call, in order. These checks protect memory; Python reports user errors earlier.
template <class All>
class Buffers {
 public:
  explicit Buffers(const All& all) : all_(all) {}

  ffi::AnyBuffer next() {
    if (taken_ == all_.size()) throw std::invalid_argument("more buffers expected than the " + std::to_string(taken_) + " given");
    return buffer(all_, taken_++);
  }

  template <class S>
  S* next(const Sizes& shape) {
    const ffi::AnyBuffer found = next();
    if (found.element_type() != data_type<S> ||
        !std::equal(shape.begin(), shape.end(), found.dimensions().begin(), found.dimensions().end()))
      throw std::invalid_argument("buffer " + std::to_string(taken_ - 1) + " has another dtype or shape than expected");
    return static_cast<S*>(found.untyped_data());
  }

  template <class S>
  View<S> view(const Sizes& shape) {
    return {next<std::remove_const_t<S>>(shape), shape[1] * shape[2], shape[2]};
  }

  Sizes ahead(size_t i) const {  // the shape of the buffer after i more
    if (taken_ + i >= all_.size()) throw std::invalid_argument("buffer " + std::to_string(taken_ + i) + " is missing");
    const ffi::AnyBuffer found = buffer(all_, taken_ + i);
    return Sizes(found.dimensions().begin(), found.dimensions().end());
  }

  bool done() const { return taken_ == all_.size(); }

 private:
  const All& all_;
  size_t taken_ = 0;
};

using Operands = Buffers<ffi::RemainingArgs>;
using Results = Buffers<ffi::RemainingRets>;

// The settings that all calls of a compiled function share.
struct Options {
  std::string_view cell;
  bool reverse, bias;
  bool d_input = false, d_parameters = false, d_hidden = false, d_cell = false, d_gates = false;  // requested of a backward
};

// The lengths as the kernels read them; none if the buffer is empty.
std::vector<int64_t> read_lengths(const ffi::AnyBuffer& buffer, int64_t T, int64_t B) {
  if (buffer.element_count() == 0) return {};
  if (buffer.element_type() != ffi::S32 || int64_t(buffer.element_count()) != B)
    throw std::invalid_argument("lengths: expected " + std::to_string(B) + " integers");
  const auto* given = static_cast<const int32_t*>(buffer.untyped_data());
  std::vector<int64_t> lengths(given, given + B);
  for (size_t b = 0; b < lengths.size(); ++b)
    if (lengths[b] < 0 || lengths[b] > T)
      throw std::invalid_argument("lengths[" + std::to_string(b) + "] is " + std::to_string(lengths[b]) +
                                  ", expected 0 to T = " + std::to_string(T));
  return lengths;
}

// Reads x (T, B, I), lengths (B) or (0), and the parameters in the kernels' order.
template <class S>
void describe(const CellKernels& cell, const Options& options, Operands& operands, std::vector<int64_t>& lengths,
              Recurrence<S>& p) {
  const Sizes x = operands.ahead(0), weight = operands.ahead(3);
  if (x.size() != 3 || weight.size() != 2) throw std::invalid_argument("x and weight_hh: another rank");
  p.T = x[0], p.B = x[1], p.I = x[2], p.H = weight[0] / cell.gates, p.P = weight[1];
  if (p.T < 1 || p.B < 1 || p.I < 1) throw std::invalid_argument("x: an axis is empty");
  if (p.H < 1 || (!cell.projects && p.H != p.P)) throw std::invalid_argument("weight_hh: another shape");
  p.reverse = options.reverse;
  p.x = operands.view<const S>(x);
  lengths = read_lengths(operands.next(), p.T, p.B);
  p.lengths = lengths.empty() ? nullptr : lengths.data();
  const std::vector<Named> named = parameters(cell, p.I, p.H, p.P);
  for (int i = 0; i < max_parameters; ++i)
    if (named[size_t(i)].name && (options.bias || !may_be_missing(i))) p.weights[i] = operands.next<S>(named[size_t(i)].shape);
}

template <class S>
Sizes state_shape(const Recurrence<S>& p, int64_t rows, int i) {
  return {rows, p.B, i == 0 ? p.P : p.H};
}

template <class S>
S* saved(const CellKernels& cell, const Recurrence<S>& p, auto& from) {
  Sizes shape = saved_shape<S>(cell, p.B, p.H);
  shape.insert(shape.begin(), p.T);
  return from.template next<S>(shape);
}

template <class Problem>
void run(void (*kernel)(const Problem&, const Host&), const Problem& problem, double operations) {
  Call call([] { return false; }, operations);  // not interruptible: only Python handles signals
  kernel(problem, call.host());
}

// Operands: those of `describe`, then the initial states (B, P), (B, H). Results: the output (T, B, P); the states, either two
// rows, initial and final, or all T + 2 as in step/windows.hpp; and with all states, the saved values.
template <class S>
void forward(const CellKernels& cell, const Options& options, Operands operands, Results results) {
  Forward<S> p{};
  std::vector<int64_t> lengths;
  describe(cell, options, operands, lengths, p);
  p.output = results.view<S>({p.T, p.B, p.P});
  const int64_t rows = results.ahead(0).at(0);
  p.every = rows == p.T + 2 ? 0 : p.T;
  if (p.every && rows != 2) throw std::invalid_argument("states: another number of rows");
  for (int i = 0; i < cell.states; ++i) {
    const Sizes shape = state_shape(p, rows, i);
    const int64_t size = shape[1] * shape[2];
    p.states[i] = results.next<S>(shape);
    std::copy_n(operands.next<S>({shape[1], shape[2]}), size, p.states[i] + (p.reverse && !p.every ? (p.T + 1) * size : 0));
  }
  if (!p.every) p.saved = saved(cell, p, results);
  if (!operands.done() || !results.done()) throw std::invalid_argument("fewer buffers expected than given");
  run(entries<S>(cell).forward, p, operations(cell, p));
}

// Operands: those of `describe`, all states, the saved values, and the gradients of output and final states. Results: the
// gradients of the initial states, and those that the options request, in their order.
template <class S>
void backward(const CellKernels& cell, const Options& options, Operands operands, Results results) {
  Backward<S> p{};
  std::vector<int64_t> lengths;
  describe(cell, options, operands, lengths, p);
  for (int i = 0; i < cell.states; ++i)
    p.states[i] = operands.next<S>(state_shape(p, p.T + 2, i));  // only read, because all are stored
  p.saved = saved(cell, p, operands);
  p.d_output = operands.view<const S>({p.T, p.B, p.P});
  for (int i = 0; i < cell.states; ++i) {
    const Sizes shape = state_shape(p, p.T, i), initial = {shape[1], shape[2]};
    p.d_final[i] = operands.next<S>(initial);
    p.d_initial[i] = results.next<S>(initial);
  }
  if (options.d_input) p.d_input = results.view<S>({p.T, p.B, p.I});
  const std::vector<Named> named = parameters(cell, p.I, p.H, p.P);
  for (int i = 0; options.d_parameters && i < max_parameters; ++i)
    if (p.weights[i]) p.d_weights[i] = results.next<S>(named[size_t(i)].shape);
  if (options.d_hidden) p.d_states[0] = results.next<S>(state_shape(p, p.T, 0));
  if (options.d_cell) p.d_states[1] = results.next<S>(state_shape(p, p.T, 1));
  if (options.d_gates) p.d_gates = results.next<S>({p.T, p.B, cell.gates * p.H});
  if (!operands.done() || !results.done()) throw std::invalid_argument("fewer buffers expected than given");
  run(entries<S>(cell).backward, p, 2 * operations(cell, p));
}

using Kernel = void (*)(const CellKernels&, const Options&, Operands, Results);

ffi::Error call(Kernel f32, Kernel f64, const Options& options, const ffi::RemainingArgs& operands,
                const ffi::RemainingRets& results) {
  try {
    const bool wide = Operands(operands).next().element_type() == ffi::F64;
    (wide ? f64 : f32)(find_cell(std::string(options.cell).c_str()), options, Operands(operands), Results(results));
    return ffi::Error::Success();
  } catch (const std::invalid_argument& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

constexpr auto forward_call = [](std::string_view cell, bool reverse, bool bias, ffi::RemainingArgs operands,
                                 ffi::RemainingRets results) {
  return call(forward<float>, forward<double>, {.cell = cell, .reverse = reverse, .bias = bias}, operands, results);
};

constexpr auto backward_call = [](std::string_view cell, bool reverse, bool bias, bool d_input, bool d_parameters, bool d_hidden,
                                  bool d_cell, bool d_gates, ffi::RemainingArgs operands, ffi::RemainingRets results) {
  const Options options = {cell, reverse, bias, d_input, d_parameters, d_hidden, d_cell, d_gates};
  return call(backward<float>, backward<double>, options, operands, results);
};

auto common_binding() { return ffi::Ffi::Bind().Attr<std::string_view>("cell").Attr<bool>("reverse").Attr<bool>("bias"); }

XLA_FFI_DEFINE_HANDLER(forward_handler, forward_call, common_binding().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER(backward_handler, backward_call,
                       common_binding()
                           .Attr<bool>("d_input")
                           .Attr<bool>("d_parameters")
                           .Attr<bool>("d_hidden")
                           .Attr<bool>("d_cell")
                           .Attr<bool>("d_gates")
                           .RemainingArgs()
                           .RemainingRets());

}  // namespace

void register_jax(pybind11::module_& m) {
  m.def("jax_handlers", [] {
    pybind11::dict handlers;
    handlers["throughtime_forward"] = pybind11::capsule(reinterpret_cast<void*>(forward_handler));
    handlers["throughtime_backward"] = pybind11::capsule(reinterpret_cast<void*>(backward_handler));
    return handlers;
  });
}

}  // namespace throughtime
