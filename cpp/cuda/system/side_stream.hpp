// A second stream for products that overlap with the recurrence. The destructor makes the caller's stream wait for it.
#pragma once

#include "runtime.hpp"

namespace throughtime::cuda {

class SideStream {
 public:
  // Without `overlap` it is the caller's stream.
  SideStream(Stream of_caller, bool overlap) : caller(of_caller), own(overlap ? side_stream() : of_caller), overlaps(overlap) {}
  SideStream(const SideStream&) = delete;
  ~SideStream() {
    try {
      join();
    } catch (...) {  // the device is lost; the next call reports that
    }
  }

  Stream stream() const { return own; }
  // Its next work waits for all work queued in the caller's stream so far.
  void follow() {
    if (overlaps) wait(own, caller), ahead = true;
  }
  // The caller's next work waits for all work queued in it so far.
  void join() {
    if (ahead) wait(caller, own), ahead = false;
  }

 private:
  Stream caller, own;
  bool overlaps, ahead = false;
};

}  // namespace throughtime::cuda
