// Borrows threads of an OpenMP runtime that another library has loaded, through functions found in it at run time.
#pragma once

#include <cstdint>

namespace throughtime {

// Functions of libgomp, libomp or libiomp5, of which `parallel` (GNU's entry) or `fork_call` (LLVM's and Intel's) is present.
struct OpenMP {
  void (*parallel)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
  void (*fork_call)(void* location, int32_t count, void (*body)(int32_t*, int32_t*, void*), ...);
  void (*push_num_threads)(void* location, int32_t thread, int32_t threads);
  int32_t (*global_thread_num)(void* location);
  int (*in_parallel)();
  int (*thread_num)();
  int (*max_threads)();
};

// Later calls run on its threads, except in a forked child, in which the runtime may wait for threads that no longer exist.
void borrow(const OpenMP& runtime);

// The number of threads that it would give to a parallel region of this thread; 0 if nothing is borrowed.
int borrowed_threads();

// Whether this thread is already in a parallel region.
bool in_parallel();

// Runs body(argument, i) on this thread, number 0, and on up to threads - 1 others, as many as the runtime has.
void run_borrowed(int threads, void (*body)(void*, int), void* argument);

}  // namespace throughtime
