// A second stream beside the caller's, for products that overlap with the recurrence. What it has is done before the caller's
// stream goes on after this ends.
#pragma once

#include "runtime.hpp"

namespace throughtime::cuda {

class SideStream {
 public:
  // Where there is nothing to overlap it is the caller's stream itself.
  SideStream(Stream of_caller, bool overlap) : caller(of_caller), own(overlap ? side_stream() : of_caller), overlaps(overlap) {}
  SideStream(const SideStream&) = delete;
  ~SideStream() {
    try {
      join();
    } catch (...) {  // a device that is lost: the next call says so
    }
  }

  Stream stream() const { return own; }
  // Its next work waits for all that the caller's stream has.
  void follow() {
    if (overlaps) wait(own, caller), ahead = true;
  }
  // The caller's next work waits for all that it has.
  void join() {
    if (ahead) wait(caller, own), ahead = false;
  }

 private:
  Stream caller, own;
  bool overlaps, ahead = false;
};

}  // namespace throughtime::cuda
