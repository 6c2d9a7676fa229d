// Proofs of the C++ code, at the register width of TT_VECTOR_BYTES, which any machine can run:
//   complex step   each cell's backward is the derivative of its forward, to the last digits;
//   whole numbers  both time loops, with cells of G = 1, 3, 4 gates that only add integers: packing, interleaving, tiles,
//                  tails, threads and rules give the plain loops' numbers, compared with ==, and write to no other memory.
// Prints one line per proof; the exit status tells whether all hold.
#define TT_ISA tested

#include <algorithm>
#include <array>
#include <complex>
#include <cstdio>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "number.hpp"
#include "row_unit.hpp"

namespace throughtime::TT_ISA {

struct Complex {
  std::complex<double> z;
  Complex(double real = 0) : z(real) {}
  Complex(std::complex<double> value) : z(value) {}

  friend Complex operator+(Complex a, Complex b) { return a.z + b.z; }
  friend Complex operator-(Complex a, Complex b) { return a.z - b.z; }
  friend Complex operator*(Complex a, Complex b) { return a.z * b.z; }
  friend Complex operator/(Complex a, Complex b) { return a.z / b.z; }
  friend Complex operator-(Complex a) { return -a.z; }
  friend Complex& operator+=(Complex& a, Complex b) { return a = a + b; }
  friend bool operator<(Complex a, Complex b) { return a.z.real() < b.z.real(); }
  friend bool operator>(Complex a, Complex b) { return b < a; }
};
Complex sigmoid(Complex a) { return 1.0 / (1.0 + std::exp(-a.z)); }
Complex tanh(Complex a) { return std::tanh(a.z); }
Complex square_root(Complex a) { return std::sqrt(a.z); }

template <>
struct ScalarOf<Complex> {
  using type = Complex;
};
template <>
struct RowUnit<Complex> : RowUnit<double> {};
template <>
struct ScalarOf<double> {  // the number type of the plain loops
  using type = double;
};

}  // namespace throughtime::TT_ISA

#include "cells/cells.hpp"
#include "cpu/recurrent/backward.hpp"
#include "cpu/recurrent/forward.hpp"

namespace throughtime::TT_ISA {

bool report(bool holds, const char* proof, const std::string& of) {
  std::printf("%s %2d-byte registers, %s: %s\n", holds ? "ok    " : "FAILED", vector_bytes, proof, of.c_str());
  return holds;
}

// ---------------------------------------------------------------------------------------------------------- complex step

constexpr double tiny = 1e-30;

// The largest error of a backward, relative to the largest derivative.
class Differences {
 public:
  void compare(Complex got, double expected) {
    largest = std::max(largest, std::abs(expected));
    worst = std::max(worst, std::abs(got.z.real() - expected));
  }
  double relative() const { return largest > 0 ? worst / largest : worst; }

 private:
  double largest = 0, worst = 0;
};

template <size_t n>
using Numbers = std::array<Complex, n>;

// A cell's inputs for one unit; a second product multiplies with the number u.
template <class C>
struct OfUnit {
  static constexpr int weights = unit_parameter_count<C>();
  Numbers<C::gates> x;
  Numbers<C::recurrent> r;
  Numbers<C::states> s;
  Numbers<weights> w;
  Numbers<1> u;
  Complex next[C::states], a[C::saved + 1];

  void forward() {
    if constexpr (C::phases == Phases::two_products) {
      Complex m;
      C::forward(x.data(), r.data(), s.data(), next, a, &m);
      const Complex second = u[0] * m;
      if constexpr (C::projects) next[0] = second;
      else C::finish(x.data(), &second, s.data(), next, a);
    } else if constexpr (weights > 0) {
      C::forward(x.data(), r.data(), s.data(), w.data(), next, a);
    } else {
      C::forward(x.data(), r.data(), s.data(), next, a);
    }
  }

  // Fills the cell's outputs, and dw and du.
  void backward(Complex* dn, Complex* ds, Complex* dx, Complex* dr, Complex* dw, Complex* du) const {
    if constexpr (C::phases == Phases::two_products) {
      Complex m, second;
      if constexpr (C::projects) second = dn[0];
      else second = C::second_product_delta(a, s.data(), dn[0]);
      const Complex dm = u[0] * second, dh = dn[0];
      C::backward(a, s.data(), dn, &dm, ds, dx, dr, &m);
      dn[0] = dh;  // a projected cell has overwritten it
      *du = second * m;
    } else if constexpr (weights > 0) {
      C::backward(a, s.data(), next, w.data(), dn, ds, dx, dr, dw);
    } else {
      C::backward(a, s.data(), next, dn, ds, dx, dr);
    }
  }

  // Derivatives of the sum of the states after, weighted by `loss`.
  template <class Derivative>
  void compare(const Complex* loss, const Derivative& derivative, Differences& found) const {
    Complex dn[C::states], ds[C::states], dx[C::gates], dr[C::gates], dw[weights + 1], du;
    for (int n = 0; n < C::states; ++n) dn[n] = loss[n];
    backward(dn, ds, dx, dr, dw, &du);
    for (int g = 0; g < C::gates; ++g) found.compare(dx[g], derivative(&OfUnit::x, g));
    for (int g = 0; g < C::recurrent; ++g) found.compare(C::split ? dr[g] : dx[g], derivative(&OfUnit::r, g));
    for (int k = 0; k < weights; ++k) found.compare(dw[k], derivative(&OfUnit::w, k));
    if (C::phases == Phases::two_products) found.compare(du, derivative(&OfUnit::u, 0));
    for (int n = C::projects ? 1 : 0; n < C::states; ++n) found.compare(ds[n], derivative(&OfUnit::s, n));
    found.compare(dn[0], loss[0].z.real());
    // The first gate reaches the loss only through c', so dL/dx_0 = (total dL/dc') (dc'/dx_0).
    if constexpr (C::states == 2) {
      OfUnit moved = *this;
      moved.x[0].z += std::complex<double>(0, tiny);
      moved.forward();
      found.compare(dn[1], derivative(&OfUnit::x, 0) / (moved.next[1].z.imag() / tiny));
    }
  }
};

// A cell's inputs for a whole row: number k (of n) of unit j is at j n + k; x and r are the products.
template <class C>
struct OfRow {
  static constexpr int H = 5, G = C::gates, N = C::states, weights = unit_parameter_count<C>();
  Numbers<H * G> x, r;
  Numbers<H * N> s;
  Numbers<H * weights> w;
  Numbers<0> u;
  Complex next[H * N], a[H * C::saved];

  // The interface of the time loops' rows.
  struct Row {
    using V = Complex;
    OfRow& of;
    const Complex* loss;  // of the states after; only in a backward
    Complex row_scratch[H * C::row_scratch], dz[H * G], dx[H * G], dr[H * G], ds[H * N], dw[H * weights];

    int64_t units() const { return H; }
    int64_t vectors() const { return H; }
    Complex keep(int64_t, Complex value) const { return value; }
    static Complex total(Complex value) { return value; }
    Complex a(int64_t j, int k) const { return of.a[j * C::saved + k]; }
    Complex w(int64_t j, int k) const { return of.w[size_t(j * weights + k)]; }
    Complex last_state(int64_t j) const { return of.s[size_t(j * N + N - 1)]; }
    Complex scratch(int64_t j, int k) const { return row_scratch[j * C::row_scratch + k]; }
    void set_scratch(int64_t j, int k, Complex value) { row_scratch[j * C::row_scratch + k] = value; }
    template <int i>
    void set_next(int64_t j, Complex value) {
      of.next[j * N + i] = value;
    }
    void arriving(int64_t j, Complex* dn, Complex*) const { std::copy_n(loss + j * N, N, dn); }
    Complex dh(int64_t j) const { return loss[j * N]; }
    void set_states(int64_t j, const Complex*, const Complex* from, const Complex*) { std::copy_n(from, N, ds + j * N); }
    void add_weight(int64_t j, int k, Complex value) { dw[j * weights + k] = value; }
    void set_delta(int64_t j, const Complex* z, const Complex* of_x, const Complex* of_r) {
      std::copy_n(z, G, dz + j * G), std::copy_n(of_x, G, dx + j * G), std::copy_n(of_r, G, dr + j * G);
    }
  };

  void forward() {
    for (int j = 0; j < H; ++j) C::forward(&x[size_t(j * G)], &r[size_t(j * G)], s.data(), next, a + j * C::saved);
    Row row{*this, nullptr};
    C::forward_row(row);
  }

  template <class Derivative>
  void compare(const Complex* loss, const Derivative& derivative, Differences& found) {
    Row row{*this, loss};
    C::backward_row(row);
    for (int i = 0; i < H * G; ++i) {
      found.compare(row.dx[i], derivative(&OfRow::x, i));
      found.compare(row.dr[i], derivative(&OfRow::r, i));
      found.compare(row.dz[i], derivative(&OfRow::w, i / G * weights + i % G));  // b_ih comes first
    }
    for (int i = 0; i < H * N; ++i) found.compare(row.ds[i], derivative(&OfRow::s, i));
    for (int i = 0; i < H * weights; ++i) found.compare(row.dw[i], derivative(&OfRow::w, i));
  }
};

template <class C>
using Point = std::conditional_t<C::phases == Phases::rows, OfRow<C>, OfUnit<C>>;

template <class C>
double error_at(const Point<C>& point, const Complex* loss) {
  const auto derivative = [&](auto input, int i) {  // moves one input by sqrt(-1) tiny
    Point<C> moved = point;
    (moved.*input)[size_t(i)].z += std::complex<double>(0, tiny);
    moved.forward();
    double sum = 0;
    for (size_t n = 0; n < std::size(moved.next); ++n) sum += loss[n].z.real() * moved.next[n].z.imag();
    return sum / tiny;
  };
  Differences found;
  Point<C> at = point;
  at.forward();
  at.compare(loss, derivative, found);
  return found.relative();
}

template <class C>
bool complex_step() {
  constexpr double bound = 1e-14;  // about 50 roundings
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  double worst = 0;
  for (int trial = 0; trial < (C::phases == Phases::rows ? 50 : 500); ++trial) {
    Point<C> point, mirrored;  // tests a kink at zero from both sides
    const auto draw = [&](auto& values, auto& negated) {
      for (size_t i = 0; i < values.size(); ++i) negated[i] = -(values[i] = Complex(normal(random)));
    };
    draw(point.x, mirrored.x);
    draw(point.r, mirrored.r);
    draw(point.s, mirrored.s);
    draw(point.w, mirrored.w);
    draw(point.u, mirrored.u);
    Complex loss[std::extent_v<decltype(point.next)>];
    for (Complex& weight : loss) weight = Complex(normal(random));
    worst = std::max({worst, error_at<C>(point, loss), error_at<C>(mirrored, loss)});
  }
  char text[99];
  std::snprintf(text, sizeof text, "%s, relative error %.1e", C::name, worst);
  return report(worst <= bound, "complex step", text);
}

template <class... C>
bool complex_steps(List<C...>) {
  return (int(complex_step<C>()) & ...);
}

// --------------------------------------------------------------------------------------------------------- whole numbers

// x minus the nearest multiple of 16: integers do not grow with the number of steps, and small differences stay visible.
template <class V>
TT_INLINE V fold(V x) {
  using S = Scalar<V>;
  const V n = (x * S(1.0 / 16) + Exponential<S>::round) - Exponential<S>::round;
  return x - n * S(16);
}

// Each gate, state and saved value has its own factor. `backward` is not the derivative of `forward`; it only checks routing.
template <int gate_count, int state_count, bool differ>
struct Integral : OnePhase {
  static constexpr int gates = gate_count, recurrent = gates, states = state_count, saved = gates + 1;
  static constexpr bool split = differ;
  static constexpr const char* name = "integral";

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, V* next, V* a) {
    using S = Scalar<V>;
    for (int g = 0; g < gates; ++g) a[g] = fold(x[g] * S(2 * g + 1) + r[g] * S(2 * g + 3) + s[g % states]);
    a[gates] = fold(s[states - 1] - r[gates - 1] * S(3));
    for (int n = 0; n < states; ++n) {
      V sum = s[n] * S(2 * n + 3) + a[gates];
      for (int g = 0; g < gates; ++g) sum += a[g] * S(2 * g + 2 * n + 1);
      next[n] = fold(sum);
    }
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, const V* next, V* dn, V* ds, V* dx, V* dr) {
    using S = Scalar<V>;
    dn[states - 1] = fold(dn[states - 1] + dn[0] * S(3));
    for (int g = 0; g < gates; ++g) dx[g] = fold(dn[g % states] * S(2 * g + 1) + a[g] * S(3) - s[g % states]);
    if (split)
      for (int g = 0; g < gates; ++g) dr[g] = fold(dx[g] * S(2 * g - 5) + a[gates]);
    for (int n = 0; n < states; ++n) ds[n] = fold(dn[n] * S(2 * n + 5) + next[n] - s[n] * S(3));
  }
};

// (d0, d1, d2), the last axis contiguous, unset (NaN) until written. Rows have gaps of `gap` unset numbers, and more follow the
// last row, so that stray writes are found.
template <class S>
struct Tensor {
  int64_t size[3] = {}, stride[2] = {};
  std::vector<S> values;

  Tensor() = default;
  Tensor(int64_t d0, int64_t d1, int64_t d2, int64_t gap = 0, bool swapped = false) : size{d0, d1, d2} {
    stride[0] = swapped ? d2 + gap : d1 * (d2 + gap);
    stride[1] = swapped ? d0 * (d2 + gap) : d2 + gap;
    values.assign(size_t(d0 * d1 * (d2 + gap) + 64), std::numeric_limits<S>::quiet_NaN());
  }
  S* data() { return values.data(); }
  const S* data() const { return values.data(); }
  S* at(int64_t i, int64_t j, int64_t k = 0) { return data() + i * stride[0] + j * stride[1] + k; }
  double operator()(int64_t i, int64_t j, int64_t k) const { return data()[i * stride[0] + j * stride[1] + k]; }

  template <class Value>
  void fill(const Value& value) {
    for (int64_t i = 0; i < size[0]; ++i)
      for (int64_t j = 0; j < size[1]; ++j)
        for (int64_t k = 0; k < size[2]; ++k) *at(i, j, k) = S(value(i, j, k));
  }
  View<S> view() { return {data(), stride[0], stride[1]}; }
  View<const S> view() const { return {data(), stride[0], stride[1]}; }
};

struct Sizes {
  int64_t T, B, I, H;
};

enum class Memory { full, states, few };  // contents of the tape

template <class C>
struct Problem : Sizes {
  using S = float;
  bool reverse, swapped, add_to_input, clips;
  int64_t truncate, every;
  Memory memory;
  Tensor<S> x, weight_ih, weight_hh, bias_ih, bias_hh, initial[C::states];
  Tensor<S> d_output, d_cell, d_final[C::states], d_input;
  std::vector<int64_t> lengths;
  std::vector<uint8_t> resets;

  Problem(Sizes sizes, unsigned seed) : Sizes(sizes) {
    std::mt19937 random(seed);
    const auto chance = [&] { return random() % 2 == 0; };
    const auto integers = [&](Tensor<S> tensor, int most) {
      tensor.fill([&](int64_t, int64_t, int64_t) { return int(random() % unsigned(2 * most + 1)) - most; });
      return tensor;
    };
    reverse = chance(), swapped = chance(), add_to_input = chance(), clips = chance();
    truncate = chance() ? 0 : 1 + random() % 3;
    if (chance())
      for (int64_t b = 0; b < B; ++b) lengths.push_back(int64_t(random()) % (T + 1));
    if (chance())
      for (int64_t i = 0; i < T * B; ++i) resets.push_back(random() % 4 == 0);
    x = integers({T, B, I, 3, swapped}, 3);
    weight_ih = integers({1, C::gates * H, I}, 2);
    weight_hh = integers({1, C::gates * H, H}, 2);
    if (chance()) bias_ih = integers({1, 1, C::gates * H}, 5);
    if (chance()) bias_hh = integers({1, 1, C::gates * H}, 5);
    if (chance()) d_output = integers({T, B, H, 5, swapped}, 5);
    if (C::states == 2 && chance()) d_cell = integers({T, B, H}, 5);
    d_input = integers({T, B, I, 2, swapped}, 9);
    for (int n = 0; n < C::states; ++n) initial[n] = integers({1, B, H}, 5), d_final[n] = integers({1, B, H}, 5);
    for (int64_t b = 0; b < B; ++b)  // padding is NaN, so that reads of it are found
      for (int64_t t = length(b); t < T; ++t)
        for (auto* padded : {&x, &d_output, &d_cell})
          for (int64_t k = 0; k < padded->size[2]; ++k) *padded->at(t, b, k) = std::numeric_limits<S>::quiet_NaN();
    memory = Memory(random() % 3);
    every = 1 + int64_t(random()) % T;
  }

  int64_t length(int64_t b) const { return lengths.empty() ? T : lengths[size_t(b)]; }
};

// All results of a forward and a backward. The library and the plain loops fill one each.
template <class C, class S>
struct Results {
  Tensor<S> output, states[C::states];  // including the state before the first step
  Tensor<S> d_input, d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, d_initial[C::states];
  Tensor<S> d_gates, d_states[C::states];
  Tensor<double> norms[max_parameters];

  explicit Results(const Problem<C>& p) {
    const int64_t T = p.T, B = p.B, I = p.I, H = p.H, GH = C::gates * p.H;
    output = {T, B, H, 4, p.swapped};
    d_input = {T, B, I, 2, p.swapped};
    if (p.add_to_input) d_input.fill([&](int64_t t, int64_t b, int64_t i) { return p.d_input(t, b, i); });
    d_weight_ih = {1, GH, I};
    d_weight_hh = {1, GH, H};
    if (!p.bias_ih.values.empty()) d_bias_ih = {1, 1, GH};
    if (!p.bias_hh.values.empty()) d_bias_hh = {1, 1, GH};
    d_gates = {T, B, GH};
    for (auto& norm : norms) norm = {1, 1, T};
    for (int n = 0; n < C::states; ++n) {
      states[n] = {T + 2, B, H};
      for (int64_t b = 0; b < B; ++b)
        for (int64_t j = 0; j < H; ++j) *states[n].at(p.reverse ? T + 1 : 0, b, j) = S(p.initial[n](0, b, j));
      d_initial[n] = {1, B, H};
      d_states[n] = {T, B, H};
    }
  }
};

// A sum that is exact in any order of summation as long as `size` is an integer that a float represents.
struct Sum {
  double value = 0, size = 0;
  static inline double largest = 0;
  void add(double term) { value += term, size += std::abs(term); }
  operator double() {
    largest = std::max(largest, size);
    return value;
  }
};

template <class C>
class PlainLoops {
  static constexpr int G = C::gates;

 public:
  Results<C, double> results;

  explicit PlainLoops(const Problem<C>& problem)
      : results(problem), p(problem), dx(p.T, p.B, G * p.H), dr(p.T, p.B, G * p.H), before(p.T, p.B, p.H) {
    for (auto* delta : {&dx, &dr}) delta->fill(zero);
    before.fill(zero);
    results.output.fill(zero);
    for (auto& d : results.d_states) d.fill(zero);
    for (int64_t b = 0; b < p.B; ++b) sequence(b);
    results.d_gates.fill([&](int64_t t, int64_t b, int64_t q) { return dx(t, b, q); });
    input_gradient();
    weight_gradient(dx, p.x, p.I, results.d_weight_ih, results.norms[0]);
    weight_gradient(dr, before, p.H, results.d_weight_hh, results.norms[1]);
    bias_gradient(dx, results.d_bias_ih, results.norms[2]);
    bias_gradient(dr, results.d_bias_hh, results.norms[3]);
  }

 private:
  using State = std::vector<double>;  // (states, H)
  static double zero(int64_t, int64_t, int64_t) { return 0; }

  struct Step {
    int64_t t;
    bool fresh, cut;
    State old, next, saved;  // (states, H), (states, H), (H, saved)
  };

  void sequence(int64_t b) {
    State state;
    for (const auto& initial : p.initial)
      for (int64_t j = 0; j < p.H; ++j) state.push_back(initial(0, b, j));
    std::vector<Step> steps;
    const int64_t length = p.length(b);
    if (p.reverse) put_padding(state, b);
    for (int64_t taken = 0; taken < length; ++taken) {
      Step step{p.reverse ? length - 1 - taken : taken};
      const int64_t start = step.t + p.reverse;
      step.fresh = !p.resets.empty() && start < length && p.resets[size_t(start * p.B + b)];
      step.cut = p.truncate && taken > 0 && taken % p.truncate == 0;
      step.old = step.fresh ? State(state.size()) : state;
      forward(step, b);
      state = step.next;
      put(results.states, step.t + 1, b, state);
      for (int64_t j = 0; j < p.H; ++j) *results.output.at(step.t, b, j) = state[size_t(j)];
      steps.push_back(step);
    }
    if (!p.reverse) put_padding(state, b);
    State carried;
    for (const auto& d_final : p.d_final)
      for (int64_t j = 0; j < p.H; ++j) carried.push_back(d_final(0, b, j));
    for (; !steps.empty(); steps.pop_back()) backward(steps.back(), b, carried);
    put(results.d_initial, 0, b, carried);
  }

  // Past a sequence's length its state stays unchanged.
  void put_padding(const State& state, int64_t b) {
    for (int64_t t = p.length(b); t < p.T; ++t) put(results.states, t + 1, b, state);
  }

  void put(Tensor<double> (&into)[C::states], int64_t row, int64_t b, const State& state) const {
    for (int n = 0; n < C::states; ++n)
      for (int64_t j = 0; j < p.H; ++j) *into[n].at(row, b, j) = state[size_t(n * p.H + j)];
  }

  void forward(Step& step, int64_t b) {
    step.next.resize(step.old.size());
    for (int64_t j = 0; j < p.H; ++j) {
      double x[G], r[G], old[C::states], next[C::states], saved[C::saved];
      for (int64_t g = 0, q = j; g < G; ++g, q += p.H) {
        Sum from_x, from_h;
        if (!p.bias_ih.values.empty()) from_x.add(p.bias_ih(0, 0, q));
        if (!p.bias_hh.values.empty()) from_h.add(p.bias_hh(0, 0, q));
        for (int64_t i = 0; i < p.I; ++i) from_x.add(p.weight_ih(0, q, i) * p.x(step.t, b, i));
        for (int64_t i = 0; i < p.H; ++i) from_h.add(p.weight_hh(0, q, i) * step.old[size_t(i)]);
        x[g] = from_x, r[g] = from_h;
      }
      for (int n = 0; n < C::states; ++n) old[n] = step.old[size_t(n * p.H + j)];
      C::forward(x, r, old, next, saved);
      for (int n = 0; n < C::states; ++n) step.next[size_t(n * p.H + j)] = next[n];
      step.saved.insert(step.saved.end(), saved, saved + C::saved);
      *before.at(step.t, b, j) = old[0];
    }
  }

  // `carried`: in: the gradient of the state after the step; out: of the state before.
  void backward(const Step& step, int64_t b, State& carried) {
    const int64_t t = step.t;
    State elementwise(carried.size());
    for (int64_t j = 0; j < p.H; ++j) {
      double old[C::states], next[C::states], dn[C::states], ds[C::states], d_x[G], d_r[G];
      for (int n = 0; n < C::states; ++n) {
        const size_t at = size_t(n * p.H + j);
        old[n] = step.old[at], next[n] = step.next[at], dn[n] = carried[at];
      }
      if (!p.d_output.values.empty()) dn[0] += p.d_output(t, b, j);
      if (!p.d_cell.values.empty()) dn[C::states - 1] += p.d_cell(t, b, j);
      C::backward(&step.saved[size_t(j * C::saved)], old, next, dn, ds, d_x, d_r);
      for (int64_t g = 0; g < G; ++g) {
        *dx.at(t, b, g * p.H + j) = d_x[g];
        *dr.at(t, b, g * p.H + j) = C::split ? d_r[g] : d_x[g];
      }
      for (int n = 0; n < C::states; ++n) {
        *results.d_states[n].at(t, b, j) = dn[n];
        elementwise[size_t(n * p.H + j)] = ds[n];
      }
    }
    carried = State(carried.size());
    if (step.fresh || step.cut) return;
    carried = elementwise;
    for (int64_t j = 0; j < p.H; ++j) {
      Sum sum;
      sum.add(elementwise[size_t(j)]);
      for (int64_t q = 0; q < G * p.H; ++q) sum.add(dr(t, b, q) * p.weight_hh(0, q, j));
      carried[size_t(j)] = sum;
    }
  }

  void input_gradient() {
    results.d_input.fill([&](int64_t t, int64_t b, int64_t i) {
      Sum sum;
      if (p.add_to_input) sum.add(p.d_input(t, b, i));
      for (int64_t q = 0; q < G * p.H; ++q) sum.add(dx(t, b, q) * p.weight_ih(0, q, i));
      return double(sum);
    });
  }

  // Timestep t adds d^T y over the batch to the weight's gradient; `norms` receives the Frobenius norm of that.
  template <class Features>
  void weight_gradient(const Tensor<double>& d, const Features& y, int64_t size, Tensor<double>& into, Tensor<double>& norms) {
    std::vector<double> squares(size_t(p.T));
    into.fill([&](int64_t, int64_t q, int64_t i) {
      Sum total;
      for (int64_t t = 0; t < p.T; ++t) {
        double step = 0;
        for (int64_t b = 0; b < p.B; ++b)
          if (t < p.length(b)) {
            step += d(t, b, q) * y(t, b, i);
            total.add(d(t, b, q) * y(t, b, i));
          }
        squares[size_t(t)] += step * step;
      }
      return double(total);
    });
    norms.fill([&](int64_t, int64_t, int64_t t) { return std::sqrt(squares[size_t(t)]); });
  }

  void bias_gradient(const Tensor<double>& d, Tensor<double>& into, Tensor<double>& norms) {
    Tensor<double> ones(p.T, p.B, 1), column(1, G * p.H, 1);
    ones.fill([](int64_t, int64_t, int64_t) { return 1; });
    weight_gradient(d, ones, 1, column, norms);
    into.fill([&](int64_t, int64_t, int64_t q) { return column(0, q, 0); });
  }

  const Problem<C>& p;
  Tensor<double> dx, dr, before;  // before: h before the step
};

// Threads and scratch of a call. Scratch is NaN at first, and so are the bytes after it, which must not change.
class TestHost {
 public:
  Host host;

  TestHost(int threads, int64_t l2_bytes) {
    host = {.context = this,
            .threads = threads,
            .crowded = true,
            .l2_bytes = l2_bytes,
            .terms = 3,
            .forced = {},
            .allocate = allocate,
            .run = run,
            .yield = [] { std::this_thread::yield(); },
            .nap = [] { std::this_thread::yield(); },
            .stalls = [](void*, int64_t) { return false; },
            .rest = [](void*) {},
            .call_back = [](void*, bool) {},
            .interrupted = [](void*) { return false; }};
  }

  bool intact() const {
    for (const auto& block : blocks)
      for (const unsigned char* byte = block.end; byte < block.end + guard; ++byte)
        if (*byte != 0xff) return false;
    return true;
  }

 private:
  static constexpr size_t guard = 64;
  struct Free {
    void operator()(unsigned char* bytes) const { ::operator delete(bytes, std::align_val_t(64)); }
  };
  struct Block {
    std::unique_ptr<unsigned char, Free> bytes;
    const unsigned char* end;
  };

  static void* allocate(void* self, size_t bytes) {
    auto* block = static_cast<unsigned char*>(::operator new(bytes + guard, std::align_val_t(64)));
    __builtin_memset(block, 0xff, bytes + guard);
    static_cast<TestHost*>(self)->blocks.push_back({std::unique_ptr<unsigned char, Free>(block), block + bytes});
    return block;
  }

  static void run(void* self, void (*body)(void*, int), void* argument) {
    std::vector<std::thread> others;
    for (int thread = 1; thread < static_cast<TestHost*>(self)->host.threads; ++thread)
      others.emplace_back(body, argument, thread);
    body(argument, 0);
    for (auto& other : others) other.join();
  }

  std::vector<Block> blocks;
};

template <class C, class S>
Recurrence<S> recurrence(const Problem<C>& p, Tensor<S> (&states)[C::states], Tensor<S>* saved) {
  const auto or_null = [](const Tensor<S>& tensor) { return tensor.values.empty() ? nullptr : tensor.data(); };
  Recurrence<S> problem{p.T, p.B, p.I, p.H, p.H, p.reverse};
  problem.x = p.x.view();
  problem.weights[weight_ih] = p.weight_ih.data(), problem.weights[weight_hh] = p.weight_hh.data();
  problem.weights[bias_ih] = or_null(p.bias_ih), problem.weights[bias_hh] = or_null(p.bias_hh);
  problem.lengths = p.lengths.empty() ? nullptr : p.lengths.data();
  problem.resets = p.resets.empty() ? nullptr : p.resets.data();
  for (int n = 0; n < C::states; ++n) problem.states[n] = states[n].data();
  problem.saved = saved ? saved->data() : nullptr;
  return problem;
}

// Runs the loops of this width, or those of AMX.
template <template <class, class, class> class Loop, class C, class S, class P>
void run_loop(const P& problem, TestHost& host) {
#if defined(__AMX_BF16__)
  Loop<C, S, AmxRows<S, C::gates>>::run(problem, host.host);
#else
  if (problem.B == 1) Loop<C, S, OneRow<S, C::gates>>::run(problem, host.host);
  else Loop<C, S, ManyRows<S, C::gates>>::run(problem, host.host);
#endif
}

// Fills the library's results. Returns a fault, or an empty string.
template <class C, class S>
std::string run_library(const Problem<C>& p, TestHost& host, Results<C, S>& out) {
  const auto data = [](Tensor<S>& tensor) { return tensor.values.empty() ? nullptr : tensor.data(); };
  const int64_t kept = p.T * p.B * ceil_div(p.H, lanes<S>) * C::saved * lanes<S>;
  Tensor<S> saved(1, 1, kept);

  const Forward<S> forward{recurrence(p, out.states, &saved), out.output.view()};
  run_loop<ForwardLoop, C, S>(forward, host);

  Tensor<S> few[C::states], output(p.T, p.B, p.H, 4, p.swapped);  // the same with checkpoints
  const int64_t last = ceil_div(p.T, p.every);
  for (int n = 0; n < C::states; ++n) {
    few[n] = {last + 1, p.B, p.H};
    __builtin_memcpy(few[n].data(), p.initial[n].data(), size_t(p.B * p.H) * sizeof(S));
  }
  Forward<S> sparse{recurrence<C, S>(p, few, nullptr), output.view()};
  sparse.every = p.every;
  run_loop<ForwardLoop, C, S>(sparse, host);
  for (size_t i = 0; i < output.values.size(); ++i)
    if (output.values[i] == output.values[i] && output.values[i] != out.output.values[i]) return "output with few states kept";
  for (int n = 0; n < C::states; ++n)
    if (__builtin_memcmp(few[n].at(last, 0), out.states[n].at(p.reverse ? 1 : p.T, 0), size_t(p.B * p.H) * sizeof(S)))
      return "final state with few states kept";

  std::vector<uint8_t> clipped(size_t(p.T * p.B));
  Backward<S> backward{recurrence(p, p.memory == Memory::few ? few : out.states, p.memory == Memory::full ? &saved : nullptr)};
  backward.every = p.memory == Memory::few ? p.every : 0;
  backward.truncate = p.truncate;
  backward.clip = p.clips ? S(1 << 20) : S(0);  // never reached: the code path of clipping must change nothing
  backward.clipped = clipped.data();
  if (!p.d_output.values.empty()) backward.d_output = p.d_output.view();
  backward.d_cell = p.d_cell.values.empty() ? nullptr : p.d_cell.data();
  backward.d_input = out.d_input.view();
  backward.add_to_input = p.add_to_input;
  backward.d_weights[weight_ih] = out.d_weight_ih.data(), backward.d_weights[weight_hh] = out.d_weight_hh.data();
  backward.d_weights[bias_ih] = data(out.d_bias_ih), backward.d_weights[bias_hh] = data(out.d_bias_hh);
  backward.d_gates = out.d_gates.data();
  for (int n = 0; n < C::states; ++n) {
    backward.d_final[n] = p.d_final[n].data();
    backward.d_initial[n] = out.d_initial[n].data();
    backward.d_states[n] = out.d_states[n].data();
  }
  for (int i = 0; i < max_parameters; ++i) backward.norms[i] = out.norms[i].data();
  run_loop<BackwardLoop, C, S>(backward, host);
  for (const uint8_t flag : clipped)
    if (flag) return "clipped";
  for (int64_t i = kept; i < int64_t(saved.values.size()); ++i)
    if (saved.values[size_t(i)] == saved.values[size_t(i)]) return "what follows saved";
  return host.intact() ? "" : "what follows scratch";
}

template <class S, class R>
bool same(const Tensor<S>& got, const Tensor<R>& expected) {
  for (size_t i = 0; i < got.values.size(); ++i) {
    const double a = got.values[i], b = expected.values[i];
    if (a != b && (a == a || b == b)) return false;
  }
  return true;
}

// The first result that differs, or an empty string.
template <class C>
std::string difference(const Results<C, float>& got, const Results<C, double>& expected) {
  for (int n = 0; n < C::states; ++n) {
    if (!same(got.states[n], expected.states[n])) return "states " + std::to_string(n);
    if (!same(got.d_states[n], expected.d_states[n])) return "d_states " + std::to_string(n);
    if (!same(got.d_initial[n], expected.d_initial[n])) return "d_initial " + std::to_string(n);
  }
  for (int i = 0; i < max_parameters; ++i)
    if (!same(got.norms[i], expected.norms[i])) return "norms " + std::to_string(i);
  if (!same(got.output, expected.output)) return "output";
  if (!same(got.d_gates, expected.d_gates)) return "d_gates";
  if (!same(got.d_input, expected.d_input)) return "d_input";
  if (!same(got.d_weight_ih, expected.d_weight_ih)) return "d_weight_ih";
  if (!same(got.d_weight_hh, expected.d_weight_hh)) return "d_weight_hh";
  if (!same(got.d_bias_ih, expected.d_bias_ih)) return "d_bias_ih";
  if (!same(got.d_bias_hh, expected.d_bias_hh)) return "d_bias_hh";
  return "";
}

std::vector<Sizes> all_sizes() {
  std::vector<Sizes> all;
  for (const int64_t B : {1, 2, 5, 7, 13, 33})
    for (const int64_t H : {1, 3, 8, 9, 17, 33})
      for (const int64_t I : {1, 5, 9})
        for (const int64_t T : {1, 2, 5}) all.push_back({T, B, I, H});
  // Several chunks of 256 rows; one step per chunk; more features than rows; and units for several threads at every width.
  for (const Sizes more :
       {Sizes{600, 1, 3, 5}, {45, 13, 17, 6}, {5, 130, 4, 9}, {4, 260, 3, 17}, {3, 2, 20, 150}, {4, 1, 5, 150}, {2, 9, 300, 70}})
    all.push_back(more);
  return all;
}

template <class C>
bool whole_numbers() {
  const std::string cell = std::to_string(C::gates) + " gates, " + std::to_string(C::states) + " states, " +
                           (C::split ? "dr differs from dx" : "one delta");
  // One thread; two that divide sequences, because weights fit in the cache; three that divide units, because they do not.
  constexpr std::pair<int, int64_t> hosts[] = {{1, 0}, {2, 1 << 22}, {3, 0}};
  Sum::largest = 0;
  unsigned seed = 0;
  for (const Sizes sizes : all_sizes()) {
    const Problem<C> problem(sizes, ++seed);
    const PlainLoops<C> plain(problem);
    for (const auto [threads, l2_bytes] : hosts) {
      TestHost host(threads, l2_bytes);
      Results<C, float> results(problem);
      std::string wrong = run_library(problem, host, results);
      if (wrong.empty()) wrong = difference(results, plain.results);
      if (wrong.empty()) continue;
      char text[200];
      std::snprintf(text, sizeof text, ": %s, T=%d B=%d I=%d H=%d, %d threads, seed %u, %s%s%s%struncate %d", wrong.c_str(),
                    int(sizes.T), int(sizes.B), int(sizes.I), int(sizes.H), threads, seed, problem.reverse ? "reverse, " : "",
                    problem.lengths.empty() ? "" : "lengths, ", problem.resets.empty() ? "" : "resets, ",
                    problem.clips ? "clip, " : "", int(problem.truncate));
      return report(false, "whole numbers", cell + text);
    }
  }
  const std::string size = ", " + std::to_string(seed) + " problems, sums up to " + std::to_string(int64_t(Sum::largest));
  return report(Sum::largest < (1 << 24), "whole numbers", cell + size);
}

}  // namespace throughtime::TT_ISA

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
extern "C" int install_amx_emulator();  // amx_emulator.cpp
#endif

int main() {
  using namespace throughtime::TT_ISA;
#if defined(__AMX_BF16__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) install_amx_emulator();
#endif
  bool hold = complex_steps(Cells{});
  hold &= whole_numbers<Integral<1, 2, true>>();
  hold &= whole_numbers<Integral<3, 1, true>>();
  hold &= whole_numbers<Integral<4, 2, false>>();
  return hold ? 0 : 1;
}
