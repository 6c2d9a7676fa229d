// A bounded pool of memory for scratch, saved values and results: the first touch of fresh pages costs up to a third of a
// training step.
#pragma once

#include <stddef.h>

namespace throughtime {

void* pool_acquire(size_t bytes);  // 64-byte aligned; huge pages where it is large
void pool_release(void* block) noexcept;
void pool_trim(size_t keep) noexcept;  // gives free memory beyond so many bytes back to the system

}  // namespace throughtime
