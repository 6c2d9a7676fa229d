// A GPU simulated on the CPU, to test the kernels' logic: each thread of a grid is a fiber. Blocks that may wait for each other
// (in a cluster or a cooperative grid) run together, others one after another. The order of fibers changes in each round.
// Writes for other blocks (store_relaxed, store_remote) become visible late and in any order, except as a fence or a barrier
// guarantees. Shared memory starts as NaN. A kernel that stops making progress (a deadlock) raises an error. Writes to ordinary
// memory are visible at once: compute-sanitizer finds races there, on a device.
#pragma once

#include <stdint.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <functional>
#include <memory>
#include <vector>

#include "number.hpp"

#define TT_DEVICE inline
#define TT_KERNEL
#define TT_LAUNCH_BOUNDS(threads, blocks)

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};

namespace throughtime::stand_in {

constexpr int warp_size = 32;

// No thread passes until all `expected` threads have arrived.
struct Barrier {
  int expected, arrived = 0;
  int64_t generation = 0;
};

struct Warp {
  Barrier barrier{warp_size};
  uint32_t values[2][warp_size][6];  // words that lanes share: double buffer
};

struct Block {
  int x, y, threads;
  Barrier barrier;
  Barrier* cluster_barrier;
  Block* cluster;  // the first block of its cluster
  std::vector<unsigned char> memory;
  std::vector<Warp> warps;
};

// An asynchronous copy from memory into shared memory, not yet done.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int group;
};

// A write that other threads do not see yet.
struct Write {
  int64_t due;  // the first round in which they see it
  unsigned char* to;
  uint32_t bytes;
  unsigned char value[16];
};

// The saved state of a fiber or of the scheduler.
struct Context {
#if defined(__x86_64__)
  void* stack;
#else
  ucontext_t context;
#endif
  void go(Context& to);
  void prepare(unsigned char* memory, size_t bytes, void (*body)());
};

struct Fiber {
  Context context;
  std::vector<Write> writes;
  Block* block;
  int thread;
  int turn = 0;                // index into the warp's double buffer
  int64_t cluster_ticket = 0;  // generation of the cluster barrier at arrival
  int copy_group = 0;          // the group of new copies
  std::vector<Copy> copies;
  bool done = false;
  Warp& warp() const { return block->warps[size_t(thread / warp_size)]; }
  int lane() const { return thread % warp_size; }
};

struct Shape {
  int blocks = 1, blocks_y = 1, threads = 256;
  int64_t shared = 0;  // bytes
  int cluster = 1;
  bool cooperative = false;  // all blocks run at once
};

extern Fiber* self;
extern int grid_blocks;

void yield();  // lets other fibers run
void write_later(void* to, const void* value, size_t bytes);
void show_writes(Fiber&);
void arrive_and_wait(Barrier&);
int64_t arrive(Barrier&);
void wait(Barrier&, int64_t generation);
void run(const Shape&, const std::function<void()>& kernel);

// Runs work of a stream at once, that of the side stream as late as possible: when another stream waits for it.
void enqueue(void* stream, const std::function<void()>& work);

}  // namespace throughtime::stand_in

namespace throughtime::cuda {

TT_DEVICE int thread() { return stand_in::self->thread; }
TT_DEVICE int threads() { return stand_in::self->block->threads; }
TT_DEVICE int block() { return stand_in::self->block->x; }
TT_DEVICE int block_y() { return stand_in::self->block->y; }
TT_DEVICE int blocks() { return stand_in::grid_blocks; }

TT_DEVICE unsigned char* shared_memory() { return stand_in::self->block->memory.data(); }

TT_DEVICE void sync_block() { stand_in::arrive_and_wait(stand_in::self->block->barrier); }
TT_DEVICE void sync_warp() { stand_in::arrive_and_wait(stand_in::self->warp().barrier); }

// Shares up to six words with the warp; returns those of all lanes.
template <class Values>
TT_DEVICE const uint32_t (*show(const Values& values))[6] {
  stand_in::Fiber& f = *stand_in::self;
  uint32_t (*place)[6] = f.warp().values[f.turn ^= 1];
  __builtin_memcpy(place[f.lane()], &values, sizeof values);
  sync_warp();
  return place;
}

template <class T>
TT_DEVICE T shuffle_xor(T value, int mask) {
  T other;
  __builtin_memcpy(&other, show(value)[stand_in::self->lane() ^ mask], sizeof other);
  return other;
}

TT_DEVICE bool any_of_warp(bool value) {
  const auto* shown = show(uint32_t(value));
  bool any = false;
  for (int lane = 0; lane < stand_in::warp_size; ++lane) any |= shown[lane][0] != 0;
  return any;
}

TT_DEVICE void cluster_arrive() {
  stand_in::show_writes(*stand_in::self);
  stand_in::self->cluster_ticket = stand_in::arrive(*stand_in::self->block->cluster_barrier);
}
TT_DEVICE void cluster_wait() { stand_in::wait(*stand_in::self->block->cluster_barrier, stand_in::self->cluster_ticket); }

TT_DEVICE void store_remote(uint4* own, int rank, uint4 value) {
  const ptrdiff_t place = reinterpret_cast<unsigned char*>(own) - shared_memory();
  stand_in::write_later(stand_in::self->block->cluster[rank].memory.data() + place, &value, sizeof value);
}

template <class T>
TT_DEVICE T load_relaxed(const T* from) {
  return *from;
}
template <class T>
TT_DEVICE void store_relaxed(T* to, T value) {
  stand_in::write_later(to, &value, sizeof value);
}
template <class T>
TT_DEVICE T load_once(const T* from) {
  return *from;
}
TT_DEVICE void fence() { stand_in::show_writes(*stand_in::self); }

// Some copies run at once, others at the last moment: kernels can rely on neither.
template <class T>
TT_DEVICE void copy_async(T* to, const T* from) {
  stand_in::Fiber& f = *stand_in::self;
  if ((f.thread ^ f.copy_group) & 1) f.copies.push_back({to, from, sizeof(T), f.copy_group});
  else *to = *from;
}
TT_DEVICE void copies_commit() { ++stand_in::self->copy_group; }
TT_DEVICE void copies_wait(int left) {
  stand_in::Fiber& f = *stand_in::self;
  std::erase_if(f.copies, [&](const stand_in::Copy& copy) {
    const bool due = copy.group < f.copy_group - left;
    if (due) __builtin_memcpy(copy.to, copy.from, copy.bytes);
    return due;
  });
}

TT_DEVICE void pause() { stand_in::yield(); }

TT_DEVICE uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
TT_DEVICE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

}  // namespace throughtime::cuda
