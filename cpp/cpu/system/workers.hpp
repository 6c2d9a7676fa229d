// The library's own threads. After its work a thread polls for more for a while, so that the next call finds it awake, then
// sleeps. Threads are never destroyed: they may outlive main. A forked child has none of them and starts new ones.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

namespace throughtime {

class Workers {
 public:
  static Workers& instance();  // of this process

  std::atomic_flag busy;  // set by the call that uses them; a signal handler may start another call within it

  // Ensures that `threads` threads exist, including the caller's. Returns how many do: fewer, if the system refuses.
  int prepare(int threads) noexcept;

  // Makes each worker i from 1 to threads - 1 run body(argument, i) when it wakes.
  void post(int threads, void (*body)(void*, int), void* argument);
  // Cancels the work of workers that are still asleep; waits for the others.
  void close(int threads);

  enum State : uint32_t { idle, posted, inside };
  // One per cache line, so that a call wakes only those it needs.
  struct Worker {
    alignas(64) std::atomic<uint32_t> state{idle};
  };
  void work(Worker& worker, int thread);  // the endless loop of a worker's thread

 private:
  bool start_one() noexcept;  // false if the system refuses

  std::vector<std::unique_ptr<Worker>> workers_;
  void (*body_)(void*, int) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace throughtime
