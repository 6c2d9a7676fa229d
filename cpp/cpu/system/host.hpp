// What the kernels need of the process, built for the baseline: threads, scratch memory, cache size, interrupts.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../../kernels.hpp"
#include "memory.hpp"

namespace throughtime {

constexpr int most_threads = 1024;  // of a call

int get_num_threads();
void set_num_threads(int count);
int usable_cores();
int get_terms();  // see Host; of calls that do not say
void set_terms(int count);
void force(const Forced& choices);

class Wake;

// What a call throws in a child process that was forked from within it, since the other threads are not there to do their parts.
struct Forked : std::runtime_error {
  Forked() : std::runtime_error("this process was forked during the call, whose other threads exist in the parent alone") {}
};

// One call's hold on the process: its threads (alone, where another call has the team) and its scratch memory.
class Call {
 public:
  // `poll` is asked now and then, on the calling thread and in the floating-point mode that this had, whether the call is to
  // stop. It may fork: in the child a call of one thread goes on, any other stops by a Forked. `operations` is the number of the
  // call's floating-point operations where that is known: a call that is short stays on one thread. `terms`: see Host.
  explicit Call(std::function<bool()> poll, double operations = 0, int terms = get_terms());
  ~Call();
  Call(const Call&) = delete;

  const Host& host() const { return host_; }
  bool stopped() const { return stopped_; }

 private:
  struct Release {
    void operator()(void* block) const { pool_release(block); }
  };

  enum class Pool { none, own, borrowed };

  static void* allocate(void* self, size_t bytes);
  static void run(void* self, void (*body)(void*, int), void* argument);
  static bool interrupted(void* self);
  static void rest(void* self);
  static void call_back(void* self, bool resting);
  static void enter(void* self, int thread);
  void* take_scratch(size_t bytes);
  int take_threads();
  bool pays(Wake& wake) const;
  bool lost_threads() const;
  void note_wake();
  void wake();

  using Time = std::chrono::steady_clock::time_point;

  double operations_;
  uint64_t caller_mode_;  // of floating point
  int forks_;             // before the call
  Pool pool_ = Pool::none;
  int borrowed_ = 0;                    // threads in each parallel region, of which this call may use fewer
  void (*body_)(void*, int) = nullptr;  // of the run in progress
  void* argument_ = nullptr;
  Time run_begun_;
  std::atomic<bool> woken_{false};  // the second thread has come
  bool alone_ = false;              // own workers were not asked to come to this run yet
  std::atomic<bool> over_{false};   // thread 0 has left its body
  std::atomic<uint32_t> wakes_{0};  // threads at rest were woken so often
  std::vector<std::unique_ptr<void, Release>> scratch_;
  char* next_piece_ = nullptr;  // of the last shared block
  size_t left_ = 0;             // of its bytes
  std::function<bool()> poll_;
  Time begun_, next_poll_;
  int polls_ = 0;  // counted only if Forced says which one is interrupted
  bool stopped_ = false;
  Host host_;
};

}  // namespace throughtime
