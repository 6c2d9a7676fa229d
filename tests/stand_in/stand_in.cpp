// Fibers, barriers and 16-bit numbers of the stand-in; see stand_in.hpp.
#include "cuda/system/device.hpp"

#include <math.h>
#include <string.h>

#include <mutex>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
// Saves the callee-saved registers and switches to another stack. swapcontext needs two system calls for that.
extern "C" void throughtime_switch(void** from, void* to);
asm(R"(
.text
throughtime_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

namespace throughtime::stand_in {

#if defined(__x86_64__)
void Context::go(Context& to) { throughtime_switch(&stack, to.stack); }

void Context::prepare(unsigned char* memory, size_t bytes, void (*body)()) {
  auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(memory) + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // as if `body` had been called
  *--top = reinterpret_cast<void*>(body);
  stack = top - 6;
}
#else
void Context::go(Context& to) { swapcontext(&context, &to.context); }

void Context::prepare(unsigned char* memory, size_t bytes, void (*body)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = memory;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, body, 0);
}
#endif

Fiber* self = nullptr;
int grid_blocks = 0;

namespace {

constexpr size_t stack_bytes = 64 << 10;
constexpr int rest = 16;          // rounds
constexpr int patience = 100000;  // rounds in which no barrier opens and no fiber ends

std::mutex one_kernel;
Context scheduler;
const std::function<void()>* kernel_now;
int64_t progress;  // barriers opened, writes shown and fibers ended
int64_t round_now;
std::string fault;

void body() {
  try {
    (*kernel_now)();
  } catch (const std::exception& error) {
    fault = error.what();
  }
  show_writes(*self);
  self->done = true;
  ++progress;
  self->context.go(scheduler);
}

struct Stacks {
  std::vector<std::unique_ptr<unsigned char[]>> all;
  unsigned char* get(size_t i) {
    while (all.size() <= i) all.emplace_back(new unsigned char[stack_bytes]);
    return all[i].get();
  }
} stacks;

void prepare(std::vector<Fiber>& fibers, std::vector<Block>& blocks, int threads) {
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& f = fibers[i];
    f.block = &blocks[i / size_t(threads)];
    f.thread = int(i % size_t(threads));
    f.context.prepare(stacks.get(i), stack_bytes, body);
  }
}

uint64_t random_bits() {
  static uint64_t state = 0x9e3779b97f4a7c15;
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

// Shows a fiber's writes that are due; those of one address in order.
void show_due(Fiber& f) {
  std::vector<Write> kept;
  for (const Write& write : f.writes) {
    bool waits = write.due > round_now;
    for (const Write& earlier : kept) waits = waits || earlier.to == write.to;
    if (waits) kept.push_back(write);
    else memcpy(write.to, write.value, write.bytes), ++progress;
  }
  f.writes.swap(kept);
}

// Runs all fibers. Each round begins with a random fiber and goes forwards or backwards. Sometimes a warp rests for some
// rounds, so that the others get as far ahead of it as barriers allow.
void run_fibers(std::vector<Fiber>& fibers) {
  const size_t n = fibers.size();
  size_t resting = 0;
  int idle = 0;
  for (size_t left = n; left > 0;) {
    const int64_t before = progress;
    ++round_now;
    const uint64_t random = random_bits();
    const size_t first = size_t(random % n);
    const bool backwards = random >> 63;
    if (round_now % rest == 0) resting = size_t(random >> 32) % (4 * n) / warp_size;
    for (size_t i = 0; i < n; ++i) {
      const size_t next = (backwards ? first + n - i : first + i) % n;
      Fiber& f = fibers[next];
      if (f.done || (next / warp_size == resting && n > warp_size)) continue;
      if (!f.writes.empty()) show_due(f);
      self = &f;
      scheduler.go(f.context);
      if (f.done) --left;
      if (!fault.empty()) throw std::runtime_error(fault);
    }
    idle = progress == before ? idle + 1 : 0;
    if (idle > patience) throw std::runtime_error("stand-in: " + std::to_string(left) + " threads wait for ever");
  }
}

}  // namespace

void yield() { self->context.go(scheduler); }

void write_later(void* to, const void* value, size_t bytes) {
  Write& write = self->writes.emplace_back();
  // Most are due soon, some only after other fibers have advanced by steps.
  const uint64_t random = random_bits();
  write.due = round_now + ((random >> 32) % 256 == 0 ? 100 : int64_t(random % 3));
  write.to = static_cast<unsigned char*>(to);
  write.bytes = uint32_t(bytes);
  memcpy(write.value, value, bytes);
}

void show_writes(Fiber& f) {
  for (const Write& write : f.writes) memcpy(write.to, write.value, write.bytes);
  f.writes.clear();
}

int64_t arrive(Barrier& barrier) {
  const int64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) barrier.arrived = 0, ++barrier.generation, ++progress;
  return generation;
}

void wait(Barrier& barrier, int64_t generation) {
  while (barrier.generation == generation) yield();
}

void arrive_and_wait(Barrier& barrier) { wait(barrier, arrive(barrier)); }

void run(const Shape& shape, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_kernel);
  if (shape.threads % warp_size) throw std::runtime_error("stand-in: threads of a block must be whole warps");
  if (shape.blocks % shape.cluster) throw std::runtime_error("stand-in: blocks must be whole clusters");
  const int all = shape.blocks * shape.blocks_y, together = shape.cooperative ? all : shape.cluster;
  fault.clear();
  kernel_now = &kernel;
  grid_blocks = shape.blocks;
  for (int first = 0; first < all; first += together) {
    std::vector<Barrier> clusters(size_t(together / shape.cluster), Barrier{shape.cluster * shape.threads});
    std::vector<Block> blocks(static_cast<size_t>(together));
    for (int i = 0; i < together; ++i) {
      Block& b = blocks[size_t(i)];
      b.x = (first + i) % shape.blocks, b.y = (first + i) / shape.blocks, b.threads = shape.threads;
      b.barrier.expected = shape.threads;
      b.cluster_barrier = &clusters[size_t(i / shape.cluster)];
      b.cluster = &blocks[size_t(i - i % shape.cluster)];
      b.memory.assign(size_t(shape.shared) + 16, 0xff);
      b.warps.resize(size_t(shape.threads / warp_size));
    }
    std::vector<Fiber> fibers(size_t(together * shape.threads));
    prepare(fibers, blocks, shape.threads);
    run_fibers(fibers);
  }
}

}  // namespace throughtime::stand_in

namespace throughtime::cuda {

float to_float(BFloat16 value) { return float_of(uint32_t(value.bits) << 16); }

float to_float(Float16 value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? float_of(0x7fffffff) : sign * float_of(0x7f800000);
  return sign * (exponent ? ldexpf(float(1024 + fraction), exponent - 25) : ldexpf(float(fraction), -24));
}

void from_float(float value, BFloat16& to) {
  const uint32_t bits = bits_of(value);
  to.bits = value != value ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void from_float(float value, Float16& to) {
  const uint16_t sign = uint16_t(bits_of(value) >> 16 & 0x8000);
  const float size = fabsf(value);
  if (value != value) to.bits = 0x7fff;
  else if (size >= 65520) to.bits = sign | 0x7c00;
  else if (size < 0x1p-14f) to.bits = uint16_t(sign | int(nearbyintf(size * 0x1p24f)));
  else {
    int exponent;
    const float fraction = frexpf(size, &exponent);                                           // in [1/2, 1)
    to.bits = uint16_t(sign | (((exponent + 13) << 10) + int(nearbyintf(fraction * 2048))));  // a carry increments the exponent
  }
}

}  // namespace throughtime::cuda
