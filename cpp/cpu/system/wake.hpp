// Whether a call is worth waking another thread: by what waking took in this process, and how long its work takes alone. Both are
// running means of what was measured.
#pragma once

#include <algorithm>
#include <atomic>

namespace throughtime {

class Wake {
 public:
  explicit Wake(double nanoseconds) : latency_(nanoseconds) {}

  // A second thread saves at most half of the time, less what it is late.
  bool pays(double operations) {
    if (operations * per_operation_ >= 2 * latency_) return true;
    latency_ = latency_ * 0.999;  // so that it is measured again some time
    return false;
  }

  // Nanoseconds from the call to the second thread's first work, or to the call's end where it came too late.
  void took(double nanoseconds) { latency_ = latency_ + (std::min(nanoseconds, longest) - latency_) / 8; }

  // Of a call by so many threads.
  static void worked(double operations, double nanoseconds, int threads) {
    const double before = per_operation_, sample = nanoseconds * threads / operations;
    if (threads == 1) per_operation_ = before + (std::min(sample, 2 * before) - before) / 8;
    else if (sample < before) per_operation_ = sample;
  }

 private:
  static constexpr double longest = 1e6;  // what takes longer is another program's doing

  std::atomic<double> latency_;
  inline static std::atomic<double> per_operation_{0.1};  // nanoseconds
};

}  // namespace throughtime
