// The processor's counter, and its pause for a thread that waits without giving up its core. Always inlined: this header is
// compiled for every instruction set, and a function in it would be one symbol shared by all of them.
#pragma once

#include <stdint.h>

#if !defined(__aarch64__)
#include <immintrin.h>
#endif

namespace throughtime {

__attribute__((always_inline)) static inline int64_t ticks() {
#if defined(__aarch64__)
  int64_t count;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return int64_t(__builtin_ia32_rdtsc());
#endif
}

__attribute__((always_inline)) static inline void pause() {
#if defined(__aarch64__)
  asm volatile("yield");
#else
  _mm_pause();
#endif
}

}  // namespace throughtime
