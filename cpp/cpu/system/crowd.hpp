// Detects that other programs keep the cores busy, so that threads which wait for each other lose more than they gain. A second
// thread earns credit: a quarter of the time in which no thread waits for it. If waiting has cost more, the call continues with
// fewer threads, and later calls begin with one, for 2 ms at first; if it soon happens again, for twice as long each time, up
// to a quarter of a second.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace throughtime {

class Crowd {
 public:
  bool lasts() const { return now() < until_.load(std::memory_order_relaxed); }

  // Records that a thread that is not running was waited for this many nanoseconds. Returns whether that is too much now.
  bool stalls(int64_t nanoseconds) {
    const int64_t time = now(), earned = (time - since_.exchange(time, std::memory_order_relaxed) - nanoseconds) / 4;
    const int64_t left = std::min(credit_.load(std::memory_order_relaxed) + std::max(earned, int64_t(0)), most) - nanoseconds;
    credit_.store(left < 0 ? most / 4 : left, std::memory_order_relaxed);
    if (left < 0) begin(time);
    return left < 0;
  }

 private:
  static constexpr int64_t shortest = 2'000'000, longest = 256'000'000, most = 4'000'000, long_ago = 2'000'000'000;  // ns

  static int64_t now() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

  void begin(int64_t time) {
    const int64_t last = period_.load(std::memory_order_relaxed), passed = time - until_.load(std::memory_order_relaxed);
    const int64_t period = passed < 8 * last ? std::min(2 * last, longest) : passed < long_ago ? last : shortest;
    period_.store(period, std::memory_order_relaxed);
    until_.store(time + period, std::memory_order_relaxed);
  }

  std::atomic<int64_t> until_{0}, period_{shortest}, since_{0}, credit_{most / 4};
};

}  // namespace throughtime
