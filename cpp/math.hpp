// exp, sigmoid, tanh and relu over a vector register. With n = round(x / ln 2) and r = x - n ln 2:
//   exp(x) = 2^n (1 + e),  e = exp(r) - 1 = r + r^2 q(r),  q the polynomial of least relative error on |r| <= ln 2 / 2.
//   tanh(|x|) = E / (E + 2),  E = exp(2 |x|) - 1 = 2^n e + (2^n - 1),  which is accurate near zero, as 2 sigmoid(2x) - 1 is not.
// Errors against 50 digits are measured by tests/test_math.py.
#pragma once

#include "number.hpp"

namespace throughtime::TT_ISA {

template <class S>
struct Exponential;

template <>
struct Exponential<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float round = 0x1.8p23f;       // adding it rounds to an integer, found in the low bits
  static constexpr float ln2_high = 0x1.62ep-1f;  // few bits, so that n ln2_high is exact
  static constexpr float ln2_low = 0x1.0bfbe8p-15f;
  static constexpr float largest = 88.0f;
  static constexpr float tanh_is_one = 20.0f;  // of 2 |x|
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

// exp(x) = power + power * rest, with power = 2^n; |x| must not exceed `largest`. A NaN in x is a NaN in rest.
template <class V>
TT_INLINE void split_exp(V x, V& power, V& rest) {
  using S = Scalar<V>;
  using E = Exponential<S>;
  using Bits = typename Register<S>::bits;
  constexpr S log2_e = S(1.4426950408889634074);
  const V shifted = x * log2_e + E::round;
  const V n = shifted - E::round;
  const V r = x - n * E::ln2_high - n * E::ln2_low;
  Bits exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + E::bias) << E::mantissa;  // the bits of `round` above the integer are shifted out
  __builtin_memcpy(&power, &exponent, sizeof power);
  constexpr int terms = sizeof(E::q) / sizeof(S);
  V q = splat<V>(E::q[terms - 1]);
#pragma GCC unroll 16
  for (int i = terms - 2; i >= 0; --i) q = q * r + E::q[i];
  rest = r * r * q + r;
}

template <class V>
TT_INLINE V clamp(V x, Scalar<V> low, Scalar<V> high) {
  const V l = splat<V>(low), h = splat<V>(high);
  x = x < l ? l : x;  // in this order a NaN stays
  return x > h ? h : x;
}

// For x of at most `largest`; 0 below -`largest`. A NaN stays.
template <class V>
TT_INLINE V exp(V x) {
  using E = Exponential<Scalar<V>>;
  V power, rest;
  const V least = splat<V>(-E::largest);
  split_exp(x < least ? least : x, power, rest);
  return x < least ? V{} : power * (rest + 1);  // no product of which a subnormal part would be lost
}

template <class V>
TT_INLINE V sigmoid(V x) {
  using S = Scalar<V>;
  V power, rest;
  split_exp(clamp(-x, -Exponential<S>::largest, Exponential<S>::largest), power, rest);
  return S(1) / (S(1) + (power + power * rest));
}

template <class V>
TT_INLINE V tanh(V x) {
  using S = Scalar<V>;
  using Bits = typename Register<S>::bits;
  Bits bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const Bits sign = bits & (Bits{} + 1) << (8 * int(sizeof(S)) - 1);
  bits ^= sign;
  V size;
  __builtin_memcpy(&size, &bits, sizeof size);
  V power, rest;
  split_exp(clamp(size + size, S(0), Exponential<S>::tanh_is_one), power, rest);
  const V e = power * rest + (power - S(1));
  V value = e / (e + S(2));
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

template <class V>
TT_INLINE V relu(V x) {
  return x < Scalar<V>(0) ? V{} : x;  // in this order a NaN stays
}

}  // namespace throughtime::TT_ISA
