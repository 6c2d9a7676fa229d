// The services that the process provides to kernels, built for the baseline: threads, scratch memory, cache size, interrupts.
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
int get_terms();  // see Host; for calls that do not specify it
void set_terms(int count);
void force(const Forced& choices);

class Wake;

// Thrown by a call in a child process forked from within it, because the other threads are not there to do their parts.
struct Forked : std::runtime_error {
  Forked() : std::runtime_error("this process was forked during the call, whose other threads exist in the parent alone") {}
};

// The resources of one call: its threads (only the caller's, if another call has the team) and its scratch memory.
class Call {
 public:
  // `poll` tells whether the call must stop. It is called now and then, on the calling thread and in that thread's
  // floating-point mode. It may fork: in the child a call of one thread continues, any other throws Forked. `operations` is the
  // number of the call's floating-point operations, if known: a short call stays on one thread. `terms`: see Host.
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
  uint64_t caller_mode_;  // floating-point mode
  int forks_;             // before the call
  Pool pool_ = Pool::none;
  int borrowed_ = 0;                    // threads of each parallel region; this call may use fewer
  void (*body_)(void*, int) = nullptr;  // of the run in progress
  void* argument_ = nullptr;
  Time run_begun_;
  std::atomic<bool> woken_{false};  // the second thread has started
  bool alone_ = false;              // the workers were not yet called to this run
  std::atomic<bool> over_{false};   // thread 0 has left its body
  std::atomic<uint32_t> wakes_{0};  // times that threads at rest were woken
  std::vector<std::unique_ptr<void, Release>> scratch_;
  char* next_piece_ = nullptr;  // of the last shared block
  size_t left_ = 0;             // bytes left in it
  std::function<bool()> poll_;
  Time begun_, next_poll_;
  int polls_ = 0;  // counted only if Forced::interrupt is set
  bool stopped_ = false;
  Host host_;
};

}  // namespace throughtime
