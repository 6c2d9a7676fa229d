// A library to preload: makes chosen allocations of C++ code fail, and the start of threads. Python's and NumPy's own allocations
// are not affected, because they do not use operator new.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> until_failure{-1};  // allocations that still succeed; negative: all
std::atomic<bool> fails_once{true};
std::atomic<long> allocated{0};
std::atomic<bool> refuses_threads{false};

bool fails() {
  ++allocated;
  long left = until_failure;
  while (left > 0 && !until_failure.compare_exchange_weak(left, left - 1)) {
  }
  if (left != 0) return false;
  if (fails_once) until_failure = -1;
  return true;
}

void* allocate(size_t bytes, size_t alignment = alignof(max_align_t)) noexcept {
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  return fails() ? nullptr : std::aligned_alloc(alignment, whole ? whole : alignment);
}

void* checked(void* block) {
  if (!block) throw std::bad_alloc();
  return block;
}

}  // namespace

extern "C" {
void fail_after(long count, int once) { fails_once = once, until_failure = count; }
long count_allocated() { return allocated.exchange(0); }
void refuse_threads(int on) { refuses_threads = on; }

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create real = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return refuses_threads ? EAGAIN : real(thread, attributes, body, argument);
}
}

void* operator new(size_t bytes) { return checked(allocate(bytes)); }
void* operator new[](size_t bytes) { return checked(allocate(bytes)); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void* operator new(size_t bytes, std::align_val_t alignment) { return checked(allocate(bytes, size_t(alignment))); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(bytes, size_t(alignment));
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }
void operator delete(void* block, std::align_val_t) noexcept { std::free(block); }
void operator delete(void* block, size_t, std::align_val_t) noexcept { std::free(block); }
