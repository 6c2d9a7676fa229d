// Operations on a vector register: whole and partial loads and stores, widening, reductions, and the transpose of a square.
#pragma once

#include "../../number.hpp"

namespace throughtime::TT_ISA {

template <class V, class S>
TT_INLINE V load(const S* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <class V, class S>
TT_INLINE void store(S* to, V value) {
  __builtin_memcpy(to, &value, sizeof value);
}

// Loads the first `count` lanes; the others are zero.
template <class V, class S>
TT_INLINE V load_some(const S* from, int64_t count) {
  if (count >= lanes<S>) return load<V>(from);
  S buffer[lanes<S>] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = from[i];
  return load<V>(buffer);
}

template <class V, class S>
TT_INLINE void store_some(S* to, V value, int64_t count) {
  if (count >= lanes<S>) return store(to, value);
  S buffer[lanes<S>];
  store(buffer, value);
  for (int64_t i = 0; i < count; ++i) to[i] = buffer[i];
}

// Converts bytes to numbers; those from `count` on are zero.
template <class S>
TT_INLINE Vec<S> load_bytes(const uint8_t* from, int64_t count) {
  constexpr int W = lanes<S>;
  typedef uint8_t Bytes __attribute__((vector_size(W)));
  uint8_t some[W] = {};
  for (int64_t lane = 0; count < W && lane < count; ++lane) some[lane] = from[lane];
  Bytes bytes;
  __builtin_memcpy(&bytes, count < W ? some : from, sizeof bytes);
  return __builtin_convertvector(bytes, Vec<S>);
}

// Non-temporal store to a register-aligned address: avoids reading lines that are not reused soon. Visible to other threads
// after `stream_fence`. If the compiler has none, this is an ordinary store.
template <class V, class S>
TT_INLINE void stream(S* to, V value) {
#if defined(__clang__)
  __builtin_nontemporal_store(value, reinterpret_cast<V*>(to));
#elif defined(__x86_64__) && !defined(TT_VECTOR_BYTES)
  float* const at = reinterpret_cast<float*>(to);
  Vec<float> bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
#if defined(__AVX512F__)
  __builtin_ia32_movntps512(at, bits);
#elif defined(__AVX__)
  __builtin_ia32_movntps256(at, bits);
#else
  __builtin_ia32_movntps(at, bits);
#endif
#else
  store(to, value);
#endif
}

// Whether an array is large enough (16 MB) and aligned for `stream`.
template <class S>
TT_INLINE bool streamable(const S* to, int64_t count) {
  return count * int64_t(sizeof(S)) >= int64_t(1) << 24 && reinterpret_cast<uintptr_t>(to) % vector_bytes == 0;
}

TT_INLINE void stream_fence() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// Keeps the first `count` lanes and zeroes the others.
template <class S, class V>
TT_INLINE V keep_some(V value, int64_t count) {
  if (count >= lanes<S>) return value;
  S buffer[lanes<S>];
  store(buffer, value);
  return load_some<V>(buffer, count);
}

template <int... i>
struct Lanes {};
template <int n, int... i>
struct CountLanes : CountLanes<n - 1, n - 1, i...> {};
template <int... i>
struct CountLanes<0, i...> {
  using type = Lanes<i...>;
};

template <int first, int... i>
TT_INLINE Vec<double> in_double(Vec<float> value, Lanes<i...>) {
  return __builtin_convertvector(__builtin_shufflevector(value, value, (first + i)...), Vec<double>);
}

// sums += value in float64. GCC 12 converts lane by lane unless whole registers are shuffled.
TT_INLINE void add_to(double* sums, Vec<double> value) { store(sums, load<Vec<double>>(sums) + value); }
TT_INLINE void add_to(double* sums, Vec<float> value) {
  constexpr int half = lanes<double>;
  using All = typename CountLanes<half>::type;
  add_to(sums, in_double<0>(value, All{}));
  add_to(sums + half, in_double<half>(value, All{}));
}

// One stage of a transpose: exchanges the off-diagonal blocks of `size` lanes between two registers `size` rows apart.
template <int size, class V, int... i>
TT_INLINE void exchange_blocks(V& upper, V& lower, Lanes<i...>) {
  constexpr int n = sizeof...(i);
  const V a = upper, b = lower;
  upper = __builtin_shufflevector(a, b, ((i & size) ? n + i - size : i)...);
  lower = __builtin_shufflevector(a, b, ((i & size) ? n + i : i + size)...);
}

template <int distance, class V, int... i>
TT_INLINE V add_lanes(V value, Lanes<i...> all) {
  if constexpr (distance == 0) return value;
  else return add_lanes<distance / 2>(value + __builtin_shufflevector(value, value, (i ^ distance)...), all);
}

// The sum of all lanes, by halves.
template <class V>
TT_INLINE Scalar<V> sum_lanes(V value) {
  constexpr int n = lanes<Scalar<V>>;
  return add_lanes<n / 2>(value, typename CountLanes<n>::type{})[0];
}

template <int size, class V, int n>
TT_INLINE void transpose_from(V (&row)[n]) {
  if constexpr (size < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i)
      if (!(i & size)) exchange_blocks<size>(row[i], row[i + size], typename CountLanes<n>::type{});
    transpose_from<2 * size>(row);
  }
}

template <class V, int n>
TT_INLINE void transpose(V (&row)[n]) {
  transpose_from<1>(row);
}

template <int distance, class V, int... i>
TT_INLINE V larger_lanes(V value, Lanes<i...> all) {
  if constexpr (distance == 0) {
    return value;
  } else {
    const V other = __builtin_shufflevector(value, value, (i ^ distance)...);
    return larger_lanes<distance / 2>(value < other ? other : value, all);
  }
}

template <class V>
TT_INLINE Scalar<V> largest_lane(V value) {
  constexpr int n = lanes<Scalar<V>>;
  return larger_lanes<n / 2>(value, typename CountLanes<n>::type{})[0];
}

}  // namespace throughtime::TT_ISA
