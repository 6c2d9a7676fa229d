// Independent blocks of work, and conversion between registers of S and of double. Subnormals are kept here: an optimiser that
// divides by the root of a small mean square must not find zero, and torch and NumPy keep them too.
#pragma once

#include "../engine/pack.hpp"
#include "../system/team.hpp"

namespace throughtime::TT_ISA {

// Calls body(block, thread) for every block, each on the next free thread, or all on the calling one. Cannot be interrupted: an
// update that stops half way would leave a model that is neither the old nor the new one.
template <class Body>
void for_blocks(int64_t count, bool alone, const Host& host, const Body& body) {
  struct Work {
    const Body& body;
    int64_t count;
    alignas(64) int64_t next = 0;
  } work{body, count};
  const auto take = [](void* self, int thread) {
    Work& work = *static_cast<Work*>(self);
    for (;;) {
      const int64_t block = __atomic_fetch_add(&work.next, 1, __ATOMIC_RELAXED);
      if (block >= work.count) return;
      work.body(block, thread);
    }
  };
  if (alone || count < 2) take(&work, 0);
  else host.run(host.context, take, &work);
}

// The same for results that are discarded if the call must stop: the remaining blocks are then skipped.
template <class Body>
void for_blocks_until_stopped(int64_t count, bool alone, const Host& host, const Body& body) {
  Team team(host);
  for_blocks(count, alone, host, [&](int64_t block, int thread) {
    if (!team.interrupted(thread)) body(block, thread);
  });
}

// Adds up the sums of blocks, in order.
TT_INLINE double sum_blocks(const double* sums, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += sums[i];
  return total;
}

template <class S>
constexpr int halves = int(sizeof(double) / sizeof(S));

TT_INLINE void widen(Vec<double> x, Vec<double> (&wide)[1]) { wide[0] = x; }
TT_INLINE void widen(Vec<float> x, Vec<double> (&wide)[2]) {
  constexpr int half = lanes<double>;
  using All = typename CountLanes<half>::type;
  wide[0] = in_double<0>(x, All{});
  wide[1] = in_double<half>(x, All{});
}

template <int... i>
TT_INLINE Vec<float> in_float(Vec<double> lower, Vec<double> upper, Lanes<i...>) {
  typedef float Half __attribute__((vector_size(vector_bytes / 2)));
  return __builtin_shufflevector(__builtin_convertvector(lower, Half), __builtin_convertvector(upper, Half), i...);
}

TT_INLINE Vec<double> narrow(const Vec<double> (&wide)[1]) { return wide[0]; }
TT_INLINE Vec<float> narrow(const Vec<double> (&wide)[2]) {
  return in_float(wide[0], wide[1], typename CountLanes<lanes<float>>::type{});
}

}  // namespace throughtime::TT_ISA
