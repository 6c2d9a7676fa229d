// A second queue beside the caller's, for products that overlap with the recurrence. What it has is done before the caller's
// queue goes on after this ends.
#pragma once

#include "runtime.hpp"

namespace throughtime::cuda {

class Beside {
 public:
  // Where there is nothing to overlap it is the caller's queue itself.
  Beside(Queue of_caller, bool overlaps) : caller(of_caller), own(overlaps ? side_queue() : of_caller), apart(overlaps) {}
  Beside(const Beside&) = delete;
  ~Beside() {
    try {
      join();
    } catch (...) {  // a device that is lost: the next call says so
    }
  }

  Queue queue() const { return own; }
  // Its next work waits for all that the caller's queue has.
  void follow() {
    if (apart) order(caller, own), ahead = true;
  }
  // The caller's next work waits for all that it has.
  void join() {
    if (ahead) order(own, caller), ahead = false;
  }

 private:
  Queue caller, own;
  bool apart, ahead = false;
};

}  // namespace throughtime::cuda
