// The team of threads. Workers spin for a while after their work, so that the next call finds them awake, then sleep. The team is
// never destroyed: its threads may outlive main, and a forked child, which has none of them, starts a new one.
#include "host.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "dispatch.hpp"

namespace throughtime {

namespace {

class Workers {
 public:
  std::atomic_flag busy;  // set by the call that uses them; a signal's handler may call from within a call

  // Starts what is missing of so many threads, the caller's included; returns how many there are, should the system refuse.
  int prepare(int threads) {
    while (int(doors_.size()) < threads - 1) {
      auto door = std::make_unique<Door>();
      try {
        std::thread(&Workers::work, this, std::ref(*door), int(doors_.size()) + 1).detach();
      } catch (const std::system_error&) {
        break;
      }
      doors_.push_back(std::move(door));
    }
    return std::min(threads, int(doors_.size()) + 1);
  }

  void run(int threads, void (*body)(void*, int), void* argument) {
    body_ = body;
    argument_ = argument;
    running_.store(threads - 1, std::memory_order_relaxed);
    for (int i = 0; i < threads - 1; ++i) {
      doors_[size_t(i)]->turn.fetch_add(1);  // sequentially consistent: notify must not look for sleepers before it
      doors_[size_t(i)]->turn.notify_one();
    }
    body(argument, 0);
    while (running_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }

 private:
  // One a worker, so that a call wakes only those it needs, and no other can take its turn for its own.
  struct Door {
    alignas(64) std::atomic<uint32_t> turn{0};
  };

  void work(Door& door, int thread) {
    for (uint32_t seen = 0;; ++seen) {
      const auto awake_until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
      while (door.turn.load(std::memory_order_acquire) == seen) {
        std::this_thread::yield();
        if (std::chrono::steady_clock::now() > awake_until) door.turn.wait(seen, std::memory_order_acquire);
      }
      body_(argument_, thread);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::unique_ptr<Door>> doors_;
  void (*body_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  alignas(64) std::atomic<int> running_{0};
};

std::atomic<Workers*> current_workers{nullptr};

Workers& workers() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current_workers = nullptr; });
  (void)registered;
  Workers* found = current_workers;
  if (!found) {
    auto* fresh = new Workers;
    if (current_workers.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;
  }
  return *found;
}

constexpr long most_threads = 1024;

// The number at the start of a variable, 0 where there is none in range.
long leading_number(const char* text, const char*& end) {
  char* stop = nullptr;
  const long count = std::strtol(text, &stop, 10);
  end = stop;
  return count > 0 && count <= most_threads ? count : 0;
}

int default_threads() {
  const char* end = nullptr;
  if (const char* own = std::getenv("THROUGHTIME_NUM_THREADS"); own && *own) {
    const long count = leading_number(own, end);
    if (!count || *end) throw std::runtime_error("THROUGHTIME_NUM_THREADS is '" + std::string(own) + "', expected 1 to 1024");
    return int(count);
  }
  const char* ranks = std::getenv("LOCAL_WORLD_SIZE");  // processes that torchrun started on this machine
  const long processes = ranks ? std::max(leading_number(ranks, end), 1L) : 1;
  if (const char* shared = std::getenv("OMP_NUM_THREADS"))  // may be a list, of which the first counts
    if (const long count = leading_number(shared, end); count && (count > 1 || processes == 1)) return int(count);
  return std::max(usable_cores() / int(processes), 1);  // where torchrun's own default would be 1
}

std::atomic<int>& threads() {
  static std::atomic<int> count{default_threads()};
  return count;
}

int64_t l2_bytes() {
  static const int64_t bytes = [] {
    int64_t found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? found : int64_t(1) << 20;
  }();
  return bytes;
}

std::atomic<int> terms{3};
std::atomic<Forced> forced{Forced{}};

}  // namespace

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned cores = std::thread::hardware_concurrency();
  return cores ? int(cores) : 1;
}

int get_terms() { return terms; }
void set_terms(int count) { terms = count; }
void force(const Forced& choices) { forced = choices; }

int get_num_threads() { return threads(); }
void set_num_threads(int count) { threads() = count; }

Call::Call(std::function<bool()> poll)
    : has_team_(!workers().busy.test_and_set()),
      poll_(std::move(poll)),
      next_poll_(std::chrono::steady_clock::now() + std::chrono::milliseconds(100)) {
  const int count = has_team_ ? workers().prepare(get_num_threads()) : 1;
  host_ = {.context = this,
           .threads = count,
           .crowded = count > usable_cores(),
           .l2_bytes = l2_bytes(),
           .terms = get_terms(),
           .dot = has_dot(),
           .forced = forced,
           .allocate = allocate,
           .run = run,
           .yield = [] { std::this_thread::yield(); },
           .interrupted = interrupted};
}

Call::~Call() {
  if (has_team_) workers().busy.clear();
}

void* Call::allocate(void* self, size_t bytes) {
  void* block = pool_acquire(bytes);
  static_cast<Call*>(self)->scratch_.emplace_back(block);
  return block;
}

void Call::run(void* self, void (*body)(void*, int), void* argument) {
  const int count = static_cast<Call*>(self)->host_.threads;
  if (count == 1) body(argument, 0);
  else workers().run(count, body, argument);
}

bool Call::interrupted(void* self) {
  auto& call = *static_cast<Call*>(self);
  const auto now = std::chrono::steady_clock::now();
  if (now < call.next_poll_) return false;
  call.next_poll_ = now + std::chrono::milliseconds(100);
  return call.stopped_ = call.poll_();
}

}  // namespace throughtime
