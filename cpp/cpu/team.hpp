// The threads of one call: a barrier between steps, a stop that reaches every thread, and the floating-point mode of kernels.
#pragma once

#if !defined(__aarch64__)
#include <immintrin.h>
#endif

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

TT_INLINE void pause() {
#if defined(__aarch64__)
  asm volatile("yield");
#else
  _mm_pause();
#endif
}

class Team {
 public:
  explicit Team(const Host& host) : host_(host) {}

  // Waits for all threads; false when the call is to stop, which a thread must then do at once.
  bool wait() {
    if (host_.threads == 1) return !stopped();
    const int turn = __atomic_load_n(&turn_, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == host_.threads) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&turn_, turn + 1, __ATOMIC_RELEASE);
      return !stopped();
    }
    for (int spins = 0; __atomic_load_n(&turn_, __ATOMIC_ACQUIRE) == turn; ++spins) {
      if (stopped()) return false;
      if (host_.crowded || spins > 20000) host_.yield();
      else pause();
    }
    return !stopped();
  }

  // Asked by every thread between chunks; the first one looks for an interrupt on behalf of all.
  bool interrupted(int thread) {
    if (thread == 0 && host_.interrupted(host_.context)) __atomic_store_n(&stop_, true, __ATOMIC_RELEASE);
    return stopped();
  }

 private:
  bool stopped() const { return __atomic_load_n(&stop_, __ATOMIC_ACQUIRE); }

  const Host& host_;
  alignas(64) int turn_ = 0;
  alignas(64) int arrived_ = 0;
  alignas(64) bool stop_ = false;
};

// Subnormals are zero while this lives: a product with one costs over a hundred cycles. The caller's mode comes back.
class FlushSubnormals {
 public:
#if defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(mode_));
    asm volatile("msr fpcr, %0" ::"r"(mode_ | uint64_t(1) << 24));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(mode_)); }
#else
  FlushSubnormals() : mode_(_mm_getcsr()) { _mm_setcsr(uint32_t(mode_) | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(uint32_t(mode_)); }
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;

 private:
  uint64_t mode_;
};

}  // namespace throughtime::TT_ISA
