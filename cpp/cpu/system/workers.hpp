// The library's own threads. After its work a thread looks out for more for a while, so that the next call finds it awake, then
// sleeps. They are never destroyed: they may outlive main, and a forked child, which has none of them, starts new ones.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

namespace throughtime {

class Workers {
 public:
  static Workers& instance();  // of this process

  std::atomic_flag busy;  // set by the call that uses them; a signal's handler may call from within a call

  // Starts the missing ones of so many threads, the caller's included; returns how many there are, should the system refuse.
  int prepare(int threads);

  // body(argument, i) on worker i from 1 to threads - 1, when it wakes.
  void post(int threads, void (*body)(void*, int), void* argument);
  // Workers that are still asleep need not come; waits for the others.
  void close(int threads);

  enum State : uint32_t { idle, posted, inside };
  // On a cache line of its own, so that a call wakes only those it needs.
  struct Worker {
    alignas(64) std::atomic<uint32_t> state{idle};
  };
  void work(Worker& worker, int thread);  // what its thread does, for ever

 private:
  std::vector<std::unique_ptr<Worker>> workers_;
  void (*body_)(void*, int) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace throughtime
