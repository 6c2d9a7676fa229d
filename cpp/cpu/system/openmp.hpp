// Threads of an OpenMP runtime that somebody else has loaded, by functions found in it at run time.
#pragma once

#include <cstdint>

namespace throughtime {

// libgomp, libomp or libiomp5. One of `parallel` (GNU's entry) and `fork_call` (LLVM's and Intel's) is there.
struct OpenMP {
  void (*parallel)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
  void (*fork_call)(void* location, int32_t count, void (*body)(int32_t*, int32_t*, void*), ...);
  void (*push_num_threads)(void* location, int32_t thread, int32_t threads);
  int32_t (*global_thread_num)(void* location);
  int (*in_parallel)();
  int (*thread_num)();
  int (*max_threads)();
};

// From now on calls run on its threads. Not in a forked child, where such a runtime may wait for threads that it no longer has.
void borrow(const OpenMP& runtime);

// How many threads it would give to a parallel region of this thread; 0 where nothing is borrowed.
int borrowed_threads();

// Whether this thread is in such a region already.
bool in_parallel();

// body(argument, i) on this thread, number 0, and on i up to threads - 1, as far as the runtime has so many.
void run_borrowed(int threads, void (*body)(void*, int), void* argument);

}  // namespace throughtime
