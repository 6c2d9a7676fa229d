// Free blocks wait in the order of their release, oldest first; a request takes the smallest that fits and wastes at most a
// quarter. Beyond the limit the oldest go back to the system, so that steps of changing sizes don't grow without bound.
#include "memory.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <new>

namespace throughtime {

namespace {

constexpr size_t alignment = 64;
constexpr size_t huge_page = size_t(2) << 20;
constexpr size_t worth_keeping = size_t(64) << 10;

// Before every block: its size. As wide as the alignment, so that what follows is aligned.
struct alignas(alignment) Header {
  size_t bytes;  // header included
  Header* next;  // while it is free
};

std::align_val_t alignment_of(size_t bytes) { return std::align_val_t(bytes >= huge_page ? huge_page : alignment); }

Header* fresh(size_t bytes) {
  void* memory = ::operator new(bytes, alignment_of(bytes));
#if defined(__linux__)
  if (bytes >= huge_page) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return new (memory) Header{bytes, nullptr};
}

void discard(Header* block) noexcept { ::operator delete(block, alignment_of(block->bytes)); }

class Pool {
 public:
  Header* take(size_t bytes) {
    const std::lock_guard<std::mutex> hold(mutex);
    Header** best = nullptr;
    for (Header** at = &oldest_; *at; at = &(*at)->next)
      if ((*at)->bytes >= bytes && (*at)->bytes - bytes <= bytes / 4 && (!best || (*at)->bytes < (*best)->bytes)) best = at;
    return best ? unlink(best) : nullptr;
  }

  void put(Header* block) {
    const std::lock_guard<std::mutex> hold(mutex);
    Header** last = &oldest_;
    while (*last) last = &(*last)->next;
    block->next = nullptr;
    *last = block;
    held_ += block->bytes;
    trim(limit_);
  }

  void trim(size_t keep) {
    while (held_ > keep) discard(unlink(&oldest_));
  }

  std::mutex mutex;

 private:
  // An eighth of the memory, and not above 2 GiB.
  const size_t limit_ = std::min(size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)) / 8, size_t(2) << 30);

  Header* unlink(Header** at) {
    Header* block = *at;
    *at = block->next;
    held_ -= block->bytes;
    return block;
  }

  Header* oldest_ = nullptr;
  size_t held_ = 0;
};

// Never destroyed: arrays may outlive it. A fork must not copy a locked mutex.
Pool& pool() {
  static Pool* const shared = [] {
    static Pool* made = new Pool;
    pthread_atfork([] { made->mutex.lock(); }, [] { made->mutex.unlock(); }, [] { made->mutex.unlock(); });
    return made;
  }();
  return *shared;
}

}  // namespace

void* pool_acquire(size_t bytes) {
  bytes += sizeof(Header);
  Header* block = bytes >= worth_keeping ? pool().take(bytes) : nullptr;
  return (block ? block : fresh(bytes)) + 1;
}

void pool_release(void* block) noexcept {
  Header* header = static_cast<Header*>(block) - 1;
  if (header->bytes >= worth_keeping) pool().put(header);
  else discard(header);
}

void pool_trim(size_t keep) noexcept {
  const std::lock_guard<std::mutex> hold(pool().mutex);
  pool().trim(keep);
}

}  // namespace throughtime
