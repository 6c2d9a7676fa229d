// The memory pool. Blocks have a few sizes, so that a free one is found in constant time: a request takes the most recently
// released block of the smallest size that has one, and wastes at most a quarter. Free blocks are also listed in the order of
// their release. Beyond the limit the oldest return to the system, so that steps of changing sizes don't grow without bound.
#include "memory.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace throughtime {

namespace {

constexpr size_t alignment = 64;
constexpr size_t huge_page = size_t(2) << 20;
constexpr size_t worth_keeping = size_t(64) << 10;

#if defined(NDEBUG)
std::atomic<bool> poisons{false};
#else
std::atomic<bool> poisons{true};
#endif

// Block sizes from `worth_keeping` on: 16 from one power of two to the next.
constexpr int steps = 16;
constexpr int classes = (64 - std::bit_width(worth_keeping) + 1) * steps;

// The smallest of these sizes that holds `bytes` bytes.
size_t rounded(size_t bytes) {
  const size_t step = std::bit_floor(bytes) / steps;
  return (bytes + step - 1) / step * step;
}

int class_of(size_t rounded) {
  const size_t power = std::bit_floor(rounded);
  return (std::bit_width(power) - std::bit_width(worth_keeping)) * steps + int((rounded - power) / (power / steps));
}

struct Header;
struct Link {
  Header *before, *after;
};

// Precedes every block. As wide as the alignment, so that the block is aligned.
struct alignas(alignment) Header {
  size_t bytes;  // header included
  Link of_size;  // neighbours in the list while free: released before and after it
  Link of_all;
};
static_assert(sizeof(Header) == alignment);

// Blocks in the order of their release.
template <Link Header::* link>
class List {
 public:
  Header* oldest() const { return ends_.after; }
  Header* newest() const { return ends_.before; }

  void append(Header* block) {
    block->*link = {ends_.before, nullptr};
    (ends_.before ? (ends_.before->*link).after : ends_.after) = block;
    ends_.before = block;
  }

  void remove(Header* block) {
    const auto [before, after] = block->*link;
    (before ? (before->*link).after : ends_.after) = after;
    (after ? (after->*link).before : ends_.before) = before;
  }

 private:
  Link ends_{};
};

std::align_val_t alignment_of(size_t bytes) { return std::align_val_t(bytes >= huge_page ? huge_page : alignment); }

// Null if the system has no memory.
Header* fresh(size_t bytes) {
  void* memory = ::operator new(bytes, alignment_of(bytes), std::nothrow);
  if (!memory) return nullptr;
#if defined(__linux__)
  if (bytes >= huge_page) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return new (memory) Header{bytes, {}, {}};
}

void discard(Header* block) noexcept { ::operator delete(block, alignment_of(block->bytes)); }

class Pool {
 public:
  // A free block of at least `bytes` bytes and at most a quarter more, or null.
  Header* take(size_t bytes) {
    const std::lock_guard<std::mutex> hold(mutex);
    const int last = class_of(rounded(bytes + bytes / 4 + 1)) - 1;
    for (int i = class_of(rounded(bytes)); i <= last; ++i)
      if (Header* block = of_size_[size_t(i)].newest()) return remove(block);
    return nullptr;
  }

  void put(Header* block) {
    const std::lock_guard<std::mutex> hold(mutex);
    of_size_[size_t(class_of(block->bytes))].append(block);
    all_.append(block);
    held_ += block->bytes;
    trim(limit_);
  }

  void trim(size_t keep) {
    while (held_ > keep) discard(remove(all_.oldest()));
  }

  std::mutex mutex;

 private:
  // An eighth of the memory, at most 2 GiB.
  const size_t limit_ = std::min(size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)) / 8, size_t(2) << 30);

  Header* remove(Header* block) {
    of_size_[size_t(class_of(block->bytes))].remove(block);
    all_.remove(block);
    held_ -= block->bytes;
    return block;
  }

  std::array<List<&Header::of_size>, classes> of_size_;
  List<&Header::of_all> all_;
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
  if (bytes > SIZE_MAX / 4) throw OutOfMemory(bytes);
  const size_t least = bytes + sizeof(Header);
  const bool is_kept = !address_sanitizer && least >= worth_keeping;
  Header* block = is_kept ? pool().take(least) : nullptr;
  for (int attempt = 0; !block && attempt < 2; ++attempt) {
    if (attempt) pool_trim(0);
    block = fresh(is_kept ? rounded(least) : least);
  }
  if (!block) throw OutOfMemory(bytes);
  if (poisons.load(std::memory_order_relaxed)) std::memset(block + 1, 0xFF, bytes);
  return block + 1;
}

void pool_release(void* block) noexcept {
  Header* header = static_cast<Header*>(block) - 1;
  if (!address_sanitizer && header->bytes >= worth_keeping) pool().put(header);
  else discard(header);
}

void pool_poison(bool on) { poisons = on; }

void pool_trim(size_t keep) noexcept {
  const std::lock_guard<std::mutex> hold(pool().mutex);
  pool().trim(keep);
}

}  // namespace throughtime
