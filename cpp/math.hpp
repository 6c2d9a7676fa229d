// exp, sigmoid, tanh, relu and the normal distribution over a vector register. With n = round(x / ln 2) and r = x - n ln 2:
//   exp(x) = 2^n (1 + e),  e = exp(r) - 1 = r + r^2 q(r),  q the polynomial of least relative error on |r| <= ln 2 / 2.
//   sigmoid(-|x|) = 1 / (1 + exp(|x|)),  sigmoid(|x|) = 1 - sigmoid(-|x|). Near 1 this rounds once, 1 / (1 + exp(-x))
//   twice: the distance of a gate from 1 is how fast a cell forgets.
//   tanh(|x|) = E / (E + 2),  E = exp(2 |x|) - 1 = 2^n e + (2^n - 1). This is accurate near zero, unlike 2 sigmoid(2x) - 1.
// tests/test_math.py measures the errors against 50 digits.
#pragma once

#include "number.hpp"

namespace throughtime::TT_ISA {

template <class S>
struct Exponential;

template <>
struct Exponential<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float round = 0x1.8p23f;       // adding it rounds to an integer, held in the low bits
  static constexpr float ln2_high = 0x1.62ep-1f;  // few bits, so that n ln2_high is exact
  static constexpr float ln2_low = 0x1.0bfbe8p-15f;
  static constexpr float largest = 88.0f;
  static constexpr float tanh_is_one = 20.0f;  // bound on 2 |x|
  static constexpr float q[] = {0.50000000464136862f,   0.16666666817096720f,   0.041666354664002948f,
                                0.0083332730451559803f, 0.0013941008278654855f, 0.00019914172708428464f};
};

template <>
struct Exponential<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double round = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42fefap-1;
  static constexpr double ln2_low = 0x1.cf79abc9e3b39p-40;
  static constexpr double largest = 708.0;
  static constexpr double tanh_is_one = 44.0;
  static constexpr double q[] = {0.50000000000000055502,   0.16666666666666685987,   0.041666666666573622574,
                                 0.0083333333333146004755, 0.0013888888932379470671, 0.00019841269903009597953,
                                 2.4801504445219276603e-5, 2.7557227973968011571e-6, 2.7626326798293444162e-7,
                                 2.5114466411978035887e-8};
};

// x / ln 2 rounded to an integer, with `round` added.
template <class V>
TT_INLINE V power_of_two(V x) {
  constexpr Scalar<V> log2_e = Scalar<V>(1.4426950408889634074);
  return x * log2_e + Exponential<Scalar<V>>::round;
}

// The polynomial with coefficients of[k], of[k + 1], ... Recursive, because device code cannot read a constexpr array.
template <auto& of, int k = 0, class V>
TT_INLINE V polynomial(V x) {
  constexpr Scalar<V> c = of[k];
  if constexpr (k + 1 < int(sizeof(of) / sizeof(of[0]))) return polynomial<of, k + 1>(x) * x + c;
  else return splat<V>(c);
}

// Sets power = 2^n and rest = exp(r) - 1; `shifted` is n with `round` added.
template <class V>
TT_INLINE void scaled_exp(V shifted, V r, V& power, V& rest) {
  using E = Exponential<Scalar<V>>;
  using Bits = typename Register<Scalar<V>>::bits;
  Bits exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + E::bias) << E::mantissa;  // the shift drops the bits of `round` above the integer
  __builtin_memcpy(&power, &exponent, sizeof power);
  rest = r * r * polynomial<E::q>(r) + r;
}

// Splits exp(x) into power + power * rest, with power = 2^n, for |x| <= `largest`. If x is NaN, so is rest.
template <class V>
TT_INLINE void split_exp(V x, V& power, V& rest) {
  using E = Exponential<Scalar<V>>;
  const V shifted = power_of_two(x), n = shifted - E::round;
  scaled_exp(shifted, x - n * E::ln2_high - n * E::ln2_low, power, rest);
}

template <class V>
TT_INLINE V at_most(V x, Scalar<V> high) {
  const V h = splat<V>(high);
  return x > h ? h : x;  // in this order NaN passes through
}

// Requires x <= `largest`; 0 below -`largest`. NaN passes through.
template <class V>
TT_INLINE V exp(V x) {
  using E = Exponential<Scalar<V>>;
  V power, rest;
  const V least = splat<V>(-E::largest);
  split_exp(x < least ? least : x, power, rest);
  return x < least ? V{} : power * (rest + 1);  // power * rest alone may be subnormal, and lost
}

// a / b for b >= 1: no subnormal b, no branch. On a GPU, correctly rounded division is a function call with a barrier around
// it, which prevents the compiler from interleaving a cell's gates.
template <class V>
TT_INLINE V ratio(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(V) == sizeof(float)) {
    float inverse;  // to a unit in the last place; zero if subnormal
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    const float near = a * inverse;
    return fmaf(fmaf(-near, b, a), inverse, near);
  }
#endif
  return a / b;
}

// Returns |x|, and x's sign bit in `sign`.
template <class V, class Bits>
TT_INLINE V split_sign(V x, Bits& sign) {
  Bits bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  sign = bits & (Bits{} + 1) << (8 * int(sizeof(Scalar<V>)) - 1);
  bits ^= sign;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

template <class V>
TT_INLINE V sigmoid(V x) {
  using S = Scalar<V>;
  typename Register<S>::bits sign;
  V power, rest;
  split_exp(at_most(split_sign(x, sign), Exponential<S>::largest), power, rest);
  const V small = ratio(splat<V>(S(1)), S(1) + (power + power * rest));
  return x < S(0) ? small : S(1) - small;
}

template <class V>
TT_INLINE V tanh(V x) {
  using S = Scalar<V>;
  typename Register<S>::bits sign, bits;
  const V size = split_sign(x, sign);
  V power, rest;
  split_exp(at_most(size + size, Exponential<S>::tanh_is_one), power, rest);
  const V e = power * rest + (power - S(1));
  V value = ratio(e, e + S(2));
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

template <class S>
struct Normal;

template <>
struct Normal<float> {
  static constexpr int32_t high = ~0xfff;  // a number with these bits alone has an exact square
  static constexpr float largest = 13.25f;
  static constexpr float p[] = {0.75528513056036764f,   -0.60789664353932946f,    0.38713738107471534f,    -0.18652179500397822f,
                                0.060397035170329213f,  -0.0075407359474754204f,  -0.0034837117458916027f, 0.0016312484559619537f,
                                0.0001483033410987462f, -0.00022243052432323643f, -2.1754040100907336e-5f, 1.274109459862662e-5f};
};

template <>
struct Normal<double> {
  static constexpr int64_t high = ~int64_t(0x7ffffff);
  static constexpr double largest = 37.625;
  static constexpr double p[] = {
      0.75528513041575149279,    -0.60789664197189209322,    0.38713740074221469989,    -0.18652185795965874163,
      0.060396574890927799557,   -0.0075401889666816045251,  -0.0034796923672020383051, 0.0016308184569723671318,
      0.00013334431023062266885, -0.00023109493065021283167, -1.9082438473932859844e-6, 0.000035144666831770126508,
      7.1660449218891118571e-7,  -5.9201254389614404696e-6,  -6.2952755994391282772e-7, 1.0214902358451662263e-6,
      2.715062499800664486e-7,   -1.5494154669206426113e-7,  -8.5080323731568882994e-8, 1.3330328543330317343e-8,
      1.9415171017095207968e-8,  1.8510025158968663324e-9,   -2.4670079725836243434e-9, -7.0040601537256105754e-10};
};

// The standard normal distribution: its density phi(x) = exp(-x^2 / 2) / sqrt(2 pi), and Phi(x) = (1 + erf(x / sqrt 2)) / 2.
//   Phi(-z) = exp(-z^2 / 2) p(y) / (z + 4),  y = (z - 4) / (z + 4),  z >= 0,  and Phi(z) = 1 - Phi(-z).
// Small values keep their digits, which 1 + erf loses. z^2 is computed in two parts, because rounding it would lose as many.
template <class V>
TT_INLINE void normal(V x, V& density, V& distribution) {
  using S = Scalar<V>;
  using E = Exponential<S>;
  using N = Normal<S>;
  using Bits = typename Register<S>::bits;
  const V z = at_most(x < S(0) ? -x : x, N::largest);
  Bits bits;
  __builtin_memcpy(&bits, &z, sizeof bits);
  bits &= N::high;
  V high;
  __builtin_memcpy(&high, &bits, sizeof high);
  const V shifted = power_of_two(S(-0.5) * z * z), n = shifted - E::round;
  const V r = S(-0.5) * high * high - n * E::ln2_high - n * E::ln2_low - S(0.5) * (z - high) * (z + high);
  V power, rest;
  scaled_exp(shifted, r, power, rest);
  const V e = power * (S(1) + rest);  // power * rest alone may be subnormal
  density = e * S(0.39894228040143267794);
  const V inverse = S(1) / (z + S(4)), y = (z - S(4)) * inverse;
  const V tail = polynomial<N::p>(y) * inverse * e;
  distribution = x < S(0) ? tail : S(1) - tail;
}

template <class V>
TT_INLINE V relu(V x) {
  return x < Scalar<V>(0) ? V{} : x;  // in this order NaN passes through
}

}  // namespace throughtime::TT_ISA
