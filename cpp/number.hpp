// The number type of the kernels: a vector register of floats or doubles, as wide as the instruction set has; on CUDA, a
// scalar. The cells and math.hpp apply only operators, comparisons and ?: to it. Include this before math.hpp: vector types
// have no argument-dependent lookup, so functions that templates call must be declared first.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define TT_INLINE __host__ __device__ __forceinline__
#else
#define TT_INLINE inline __attribute__((always_inline))
#endif
#define TT_PHASE __attribute__((noinline))        // compiled once for all that call it, such as a phase of a loop
#define TT_SETUP __attribute__((noinline, cold))  // runs once per call: compiled for size

namespace throughtime::TT_ISA {

#if defined(TT_CUDA)
template <class S>
struct Register;
template <>
struct Register<float> {
  using type = float;
  using bits = int32_t;
};
template <>
struct Register<double> {
  using type = double;
  using bits = int64_t;
};

template <class S>
constexpr int lanes = 1;
#else
#if defined(TT_VECTOR_BYTES)  // override: compilers lower wide vectors, so any machine can test any layout
constexpr int vector_bytes = TT_VECTOR_BYTES, registers = vector_bytes == 64 ? 32 : 16;
#elif defined(__AVX512F__)
constexpr int vector_bytes = 64, registers = 32;
#elif defined(__AVX__)
constexpr int vector_bytes = 32, registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, registers = 32;
#else
constexpr int vector_bytes = 16, registers = 16;
#endif

template <class S>
struct Register;
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
  typedef int32_t bits __attribute__((vector_size(vector_bytes)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
  typedef int64_t bits __attribute__((vector_size(vector_bytes)));
};

template <class S>
constexpr int lanes = vector_bytes / int(sizeof(S));
#endif

template <class S>
using Vec = typename Register<S>::type;

template <class V>
struct ScalarOf;
template <>
struct ScalarOf<Vec<float>> {
  using type = float;
};
template <>
struct ScalarOf<Vec<double>> {
  using type = double;
};
template <class V>
using Scalar = typename ScalarOf<V>::type;

template <class V, class S>
TT_INLINE V splat(S value) {
  return value - V{};
}

}  // namespace throughtime::TT_ISA
