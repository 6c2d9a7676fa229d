// Whether other programs keep the cores busy. A call that finds so goes on with fewer threads, and later calls begin with one,
// for 2 ms at first; where it is found again soon, for twice as long each time, up to a quarter of a second.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace throughtime {

class Crowd {
 public:
  bool lasts() const { return now() < until_.load(std::memory_order_relaxed); }

  void found() {
    const int64_t time = now(), until = until_.load(std::memory_order_relaxed);
    if (time < until) return;
    const int64_t last = period_.load(std::memory_order_relaxed);
    const int64_t period = time - until > 8 * last ? shortest : last < longest / 2 ? 2 * last : longest;
    period_.store(period, std::memory_order_relaxed);
    until_.store(time + period, std::memory_order_relaxed);
    times_.fetch_add(1, std::memory_order_relaxed);
  }

  // How often it was found.
  int64_t times() const { return times_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t shortest = 2'000'000, longest = 256'000'000;  // ns

  static int64_t now() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

  std::atomic<int64_t> until_{0}, period_{shortest}, times_{0};
};

}  // namespace throughtime
