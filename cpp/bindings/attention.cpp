// Binding of attention, forward and backward: turns a dict of arrays into a problem and runs its kernel without the GIL.
#include "arrays.hpp"
#include "register.hpp"
#include "run.hpp"

#include "../cpu/system/dispatch.hpp"

namespace throughtime {

namespace {

template <class S>
const AttentionEntries<S>& entries() {
  const AttentionKernels& kernels = *level().kernels->attention;
  if constexpr (std::is_same_v<S, float>) return kernels.f32;
  else return kernels.f64;
}

template <class S>
void describe(const Arrays& from, Attention<S>& p) {
  const Sizes shape = from.shape("q", 3);
  p.T = shape[0], p.B = shape[1], p.heads = from.integer("heads");
  if (p.T < 1 || p.heads < 1 || shape[2] < 1 || shape[2] % p.heads)
    throw py::value_error("heads: expected a divisor of the size");
  p.size = shape[2] / p.heads;
  p.back = from.integer("back"), p.ahead = from.integer("ahead");
  if (p.back < 0 || p.back > p.T || p.ahead < 0 || p.ahead > p.T) throw py::value_error("back, ahead: expected 0 to T");
  p.lengths = from.lengths("lengths", p.T, p.B);
  p.q = from.required_view<const S>("q", shape);
  p.k = from.required_view<const S>("k", shape);
  p.v = from.required_view<const S>("v", shape);
  p.saved = from.required<S>("saved", {p.B, p.heads, 2, p.T});
}

template <class S>
void forward(const Arrays& from) {
  AttentionForward<S> p{};
  describe(from, p);
  p.output = from.required_view<S>("output", {p.T, p.B, p.heads * p.size});
  from.done();
  run(entries<S>().forward, p);
}

template <class S>
void backward(const Arrays& from, const Arrays& gradients) {
  AttentionBackward<S> p{};
  describe(from, p);
  const Sizes shape{p.T, p.B, p.heads * p.size};
  p.output = from.required_view<const S>("output", shape);
  p.d_output = gradients.required_view<const S>("d_output", shape);
  p.d_q = gradients.required_view<S>("d_q", shape);
  p.d_k = gradients.required_view<S>("d_k", shape);
  p.d_v = gradients.required_view<S>("d_v", shape);
  from.done();
  gradients.done();
  run(entries<S>().backward, p);
}

}  // namespace

void register_attention(py::module_& m) {
  m.def("attention_forward", [](const py::dict& problem) {
    const Arrays arrays(problem);
    (arrays.is_double("q") ? forward<double> : forward<float>)(arrays);
  });
  m.def("attention_backward", [](const py::dict& problem, const py::dict& gradients) {
    const Arrays arrays(problem);
    (arrays.is_double("q") ? backward<double> : backward<float>)(arrays, Arrays(gradients));
  });
}

}  // namespace throughtime
