// A bounded pool of memory for scratch, saved values and results: the first touch of fresh pages costs up to a third of a
// training step.
#pragma once

#include <stddef.h>

#include <new>
#include <string>

namespace throughtime {

// AddressSanitizer sees an access outside a block only if the block is not a piece of a larger one, and is freed after its use.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool address_sanitizer = true;
#else
constexpr bool address_sanitizer = false;
#endif

// States the size requested; Python sees a MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes) : text_("no memory for " + std::to_string(bytes) + " bytes") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// 64-byte aligned; huge pages for large blocks. Throws OutOfMemory if releasing the pool's free memory does not help either.
void* pool_acquire(size_t bytes);
void pool_release(void* block) noexcept;
void pool_trim(size_t keep) noexcept;  // returns free memory beyond `keep` bytes to the system

// For tests: new blocks are filled with bytes of 0xFF, which are a NaN or -1. Always on in builds without NDEBUG.
void pool_poison(bool on);

}  // namespace throughtime
