// The threads of one call: a barrier between steps, a stop that reaches every thread, and the floating-point mode of kernels.
#pragma once

#if !defined(__aarch64__)
#include <immintrin.h>
#endif

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

// Scratch of one call, cut from what the host lends.
template <class T>
T* scratch(const Host& host, int64_t count) {
  return static_cast<T*>(host.allocate(host.context, size_t(count) * sizeof(T)));
}

TT_INLINE void pause() {
#if defined(__aarch64__)
  asm volatile("yield");
#else
  _mm_pause();
#endif
}

class Team {
 public:
  explicit Team(const Host& host) : host_(host), doors_(scratch<Door>(host, host.threads)) {
    for (int i = 0; i < host.threads; ++i) doors_[i].passed = 0;
  }

  // Waits for all threads; false when the call is to stop, which a thread must then do at once. Each thread writes a line of its
  // own and reads the others'.
  bool wait(int thread) {
    arrive(thread);
    return wait_for_arrived(thread);
  }

  // Its two parts: `arrive` publishes what this thread has written; `wait_for_arrived` waits until every other thread has arrived
  // as often as this one.
  void arrive(int thread) { __atomic_store_n(&doors_[thread].passed, doors_[thread].passed + 1, __ATOMIC_RELEASE); }
  bool wait_for_arrived(int thread) const {
    const int64_t turn = doors_[thread].passed;
    for (int i = 0; i < host_.threads; ++i)
      if (!wait_for(doors_[i].passed, turn)) return false;
    return !stopped();
  }

  // Waits until another thread has counted so far; false when the call is to stop.
  bool wait_for(const int64_t& count, int64_t least) const {
    for (int spins = 0; __atomic_load_n(&count, __ATOMIC_ACQUIRE) < least; ++spins) {
      if (stopped()) return false;
      if (host_.crowded || spins > 20000) host_.yield();
      else pause();
    }
    return true;
  }

  // Asked by every thread between chunks; the first one looks for an interrupt on behalf of all.
  bool interrupted(int thread) {
    if (thread == 0 && host_.interrupted(host_.context)) __atomic_store_n(&stop_, true, __ATOMIC_RELEASE);
    return stopped();
  }

 private:
  struct alignas(64) Door {
    int64_t passed;
  };

  bool stopped() const { return __atomic_load_n(&stop_, __ATOMIC_ACQUIRE); }

  const Host& host_;
  Door* doors_;
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
