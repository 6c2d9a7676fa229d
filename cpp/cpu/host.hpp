// What the kernels need of the process, built for the baseline: threads, scratch memory, cache size, interrupts.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "../kernels.hpp"
#include "memory.hpp"

namespace throughtime {

int get_num_threads();
void set_num_threads(int count);
int usable_cores();
int get_terms();  // see Host
void set_terms(int count);
void force(const Forced& choices);

// One call's hold on the process: its threads (alone, where another call has the team) and its scratch memory.
class Call {
 public:
  // `poll` is asked now and then, on the calling thread, whether the call is to stop.
  explicit Call(std::function<bool()> poll);
  ~Call();
  Call(const Call&) = delete;

  const Host& host() const { return host_; }
  bool stopped() const { return stopped_; }

 private:
  struct Release {
    void operator()(void* block) const { pool_release(block); }
  };

  static void* allocate(void* self, size_t bytes);
  static void run(void* self, void (*body)(void*, int), void* argument);
  static bool interrupted(void* self);

  bool has_team_;
  std::vector<std::unique_ptr<void, Release>> scratch_;
  std::function<bool()> poll_;
  std::chrono::steady_clock::time_point next_poll_;
  bool stopped_ = false;
  Host host_;
};

}  // namespace throughtime
