// Decides whether a call is worth waking another thread, from the time that waking took in this process and the time that the
// call's work takes alone. Both are running means of measurements.
#pragma once

#include <algorithm>
#include <atomic>

namespace throughtime {

class Wake {
 public:
  explicit Wake(double nanoseconds) : latency_(nanoseconds) {}

  // A second thread saves at most half of the time, less the time until it starts.
  bool pays(double operations) {
    if (operations * per_operation_ >= 2 * latency_) return true;
    latency_ = latency_ * 0.999;  // so that it will be measured again
    return false;
  }

  // Records the nanoseconds from the call to the second thread's first work, or to the call's end if it came too late.
  void took(double nanoseconds) { latency_ = latency_ + (std::min(nanoseconds, longest) - latency_) / 8; }

  // Records a call by `threads` threads.
  static void worked(double operations, double nanoseconds, int threads) {
    const double before = per_operation_, sample = nanoseconds * threads / operations;
    if (threads == 1) per_operation_ = before + (std::min(sample, 2 * before) - before) / 8;
    else if (sample < before) per_operation_ = sample;
  }

 private:
  static constexpr double longest = 1e6;  // longer times are caused by other programs

  std::atomic<double> latency_;
  inline static std::atomic<double> per_operation_{0.1};  // nanoseconds
};

}  // namespace throughtime
