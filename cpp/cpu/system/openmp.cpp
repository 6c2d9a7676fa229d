// See openmp.hpp.
#include "openmp.hpp"

#include <pthread.h>

#include <atomic>

namespace throughtime {

namespace {

OpenMP runtime;
std::atomic<bool> borrowed{false};

struct Region {
  void (*body)(void*, int);
  void* argument;
};

// Describes a parallel region to LLVM's runtime as a C compiler would.
struct Location {
  int32_t reserved, flags, more[2];
  const char* source;
};
Location location{0, 2, {0, 0}, ";throughtime;run;0;0;;"};

}  // namespace

void borrow(const OpenMP& found) {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { borrowed = false; });
  (void)registered;
  runtime = found;
  borrowed = true;
}

int borrowed_threads() { return borrowed ? runtime.max_threads() : 0; }

bool in_parallel() { return borrowed && runtime.in_parallel(); }

void run_borrowed(int threads, void (*body)(void*, int), void* argument) {
  Region region{body, argument};
  if (runtime.parallel) {
    const auto enter = [](void* region) {
      const auto& [body, argument] = *static_cast<Region*>(region);
      body(argument, runtime.thread_num());
    };
    runtime.parallel(enter, &region, unsigned(threads), 0);
  } else {
    const auto enter = [](int32_t*, int32_t* thread, void* region) {
      const auto& [body, argument] = *static_cast<Region*>(region);
      body(argument, *thread);
    };
    runtime.push_num_threads(&location, runtime.global_thread_num(&location), threads);
    runtime.fork_call(&location, 1, static_cast<void (*)(int32_t*, int32_t*, void*)>(enter), &region);
  }
}

}  // namespace throughtime
