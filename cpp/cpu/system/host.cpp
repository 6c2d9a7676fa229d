// See host.hpp. Also the settings of the process.
#include "host.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "crowd.hpp"
#include "dispatch.hpp"
#include "openmp.hpp"
#include "processor.hpp"
#include "wake.hpp"
#include "workers.hpp"

namespace throughtime {

namespace {

// The number at the start of a variable; 0 if there is none in range.
long leading_number(const char* text, const char*& end) {
  char* stop = nullptr;
  const long count = std::strtol(text, &stop, 10);
  end = stop;
  return count > 0 && count <= most_threads ? count : 0;
}

int default_threads() {
  const char* end = nullptr;
  if (const char* own = std::getenv("THROUGHTIME_NUM_THREADS"); own && *own) {
    const long count = leading_number(own, end);
    if (!count || *end) throw std::runtime_error("THROUGHTIME_NUM_THREADS is '" + std::string(own) + "', expected 1 to 1024");
    return int(count);
  }
  const char* ranks = std::getenv("LOCAL_WORLD_SIZE");  // processes that torchrun started on this machine
  const long processes = ranks ? std::max(leading_number(ranks, end), 1L) : 1;
  if (const char* shared = std::getenv("OMP_NUM_THREADS"))  // may be a list, whose first entry counts
    if (const long count = leading_number(shared, end); count && (count > 1 || processes == 1)) return int(count);
  return std::max(usable_cores() / int(processes), 1);  // torchrun's own default would be 1
}

std::atomic<int>& threads() {
  static std::atomic<int> count{default_threads()};
  return count;
}

std::atomic<bool>& threads_are_set() {
  static std::atomic<bool> set{[] {
    const char* own = std::getenv("THROUGHTIME_NUM_THREADS");
    return own && *own;
  }()};
  return set;
}

// Calibrates the processor's counter against the clock, from the time when this library was loaded.
const int64_t first_ticks = ticks();
const auto first_time = std::chrono::steady_clock::now();

double ticks_per_nanosecond() {
  static const double rate = [] {
    const std::chrono::duration<double, std::nano> passed = std::chrono::steady_clock::now() - first_time;
    return double(ticks() - first_ticks) / passed.count();
  }();
  return rate;
}

Crowd crowd;
Wake own_wake(20e3), borrowed_wake(5e3);

double nanoseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
}

int64_t l2_bytes() {
  static const int64_t bytes = [] {
    int64_t found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? found : int64_t(1) << 20;
  }();
  return bytes;
}

std::atomic<int> terms{3};
std::atomic<Forced> forced{Forced{}};

// The number of forks between the first process and this one.
std::atomic<int> forks{0};
const int counts_forks = pthread_atfork(nullptr, nullptr, [] { ++forks; });

// This thread's floating-point mode.
#if defined(__aarch64__)
uint64_t get_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_mode(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode)); }
#else
uint64_t get_mode() { return __builtin_ia32_stmxcsr(); }
void set_mode(uint64_t mode) { __builtin_ia32_ldmxcsr(uint32_t(mode)); }
#endif

// During its lifetime, a thread between the products of a kernel runs other code, in the floating-point mode that this code
// expects. The destructor restores the kernel's mode and tile shapes.
class KernelAside {
 public:
  explicit KernelAside(uint64_t mode) : mode_(get_mode()) {
#if defined(TT_HAS_AMX)
    if (has_tiles_) asm volatile("sttilecfg %0" : "=m"(shapes_));
#endif
    set_mode(mode);
  }
  ~KernelAside() {
    set_mode(mode_);
#if defined(TT_HAS_AMX)
    if (has_tiles_) asm volatile("ldtilecfg %0" ::"m"(shapes_));
#endif
  }
  KernelAside(const KernelAside&) = delete;

 private:
  const uint64_t mode_;
#if defined(TT_HAS_AMX)
  struct alignas(64) Shapes {
    uint8_t palette, others[63];
  } shapes_{};
  const bool has_tiles_ = level().kernels->amx;
#endif
};

}  // namespace

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned cores = std::thread::hardware_concurrency();
  return cores ? int(cores) : 1;
}

int get_terms() { return terms; }
void set_terms(int count) { terms = count; }
void force(const Forced& choices) { forced = choices; }

int get_num_threads() {
  if (in_parallel()) return 1;
  const int borrowed = threads_are_set() ? 0 : borrowed_threads();
  return borrowed ? borrowed : threads().load();
}
void set_num_threads(int count) {
  threads() = count;
  threads_are_set() = true;
}

Call::Call(std::function<bool()> poll, double operations, int terms)
    : operations_(operations),
      caller_mode_(get_mode()),
      forks_(forks),
      poll_(std::move(poll)),
      begun_(std::chrono::steady_clock::now()) {
  next_poll_ = begun_ + std::chrono::milliseconds(100);
  const int count = take_threads();
  host_ = {.context = this,
           .threads = count,
           .crowded = count > 1 && count > usable_cores(),
           .patience = int64_t(50e3 * ticks_per_nanosecond()),
           .l2_bytes = l2_bytes(),
           .terms = terms,
           .avx512_bf16 = has_avx512_bf16(),
           .forced = forced,
           .allocate = allocate,
           .run = run,
           .yield = [] { std::this_thread::yield(); },
           .nap = [] { std::this_thread::sleep_for(std::chrono::microseconds(1)); },  // plus the system's slack of 50 us
           .stalls = [](void*, int64_t ticks) { return crowd.stalls(int64_t(double(ticks) / ticks_per_nanosecond())); },
           .rest = rest,
           .call_back = call_back,
           .interrupted = interrupted};
}

Call::~Call() {
  if (pool_ == Pool::own) Workers::instance().busy.clear();
  if (operations_ > 0 && !stopped_) Wake::worked(operations_, nanoseconds_since(begun_), host_.threads);
}

// Returns this call's number of threads. Borrowed ones would all start at once: if the cores are busy, this thread works alone.
int Call::take_threads() {
  const int count = get_num_threads(), borrowed = borrowed_threads();
  if (count == 1) return 1;
  if (count <= borrowed) {
    if (crowd.lasts() || !pays(borrowed_wake)) return 1;
    pool_ = Pool::borrowed;
    borrowed_ = borrowed;
    return count;
  }
  if (!pays(own_wake) || Workers::instance().busy.test_and_set()) return 1;
  pool_ = Pool::own;
  return Workers::instance().prepare(count);
}

// Overrides for tests apply to small problems too.
bool Call::pays(Wake& wake) const {
  const Forced choices = forced;
  return operations_ == 0 || choices.split != Split::free || choices.chunk || choices.rest || wake.pays(operations_);
}

void* Call::allocate(void* self, size_t bytes) { return static_cast<Call*>(self)->take_scratch(bytes); }

// Small pieces share a block that the pool keeps: a call needs up to forty, and the system's allocator takes 0.1 us for each.
void* Call::take_scratch(size_t bytes) {
  constexpr size_t alignment = 64, shared = 1 << 16, small = shared / 8;
  const auto new_block = [this](size_t size) {
    scratch_.emplace_back();  // first: it may fail, and the block would have no owner
    scratch_.back().reset(pool_acquire(size));
    return scratch_.back().get();
  };
  if (address_sanitizer || bytes > small) return new_block(bytes);
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  if (whole > left_) next_piece_ = static_cast<char*>(new_block(shared)), left_ = shared;
  void* const piece = next_piece_;
  next_piece_ += whole, left_ -= whole;
  return piece;
}

void Call::run(void* self, void (*body)(void*, int), void* argument) {
  auto& call = *static_cast<Call*>(self);
  if (call.host_.threads == 1) return body(argument, 0);
  if (call.lost_threads()) throw Forked();
  call.body_ = body;
  call.argument_ = argument;
  call.over_ = call.woken_ = false;
  call.run_begun_ = std::chrono::steady_clock::now();
  if (call.pool_ == Pool::borrowed) return run_borrowed(call.borrowed_, enter, &call);
  call.alone_ = crowd.lasts() || call.host_.forced.rest;
  if (!call.alone_) Workers::instance().post(call.host_.threads, enter, &call);
  enter(&call, 0);
  if (!call.alone_) Workers::instance().close(call.host_.threads);
  call.alone_ = false;
}

// The entry of every thread of a run.
void Call::enter(void* self, int thread) {
  auto& call = *static_cast<Call*>(self);
  if (thread >= call.host_.threads) return;
  if (thread == 1) call.note_wake();
  call.body_(call.argument_, thread);
  if (thread == 0) {
    if (call.lost_threads()) throw Forked();  // also through a borrowed runtime, which would wait for the threads
    if (!call.alone_) call.note_wake();
    call.over_ = true;
    call.wake();
  }
}

// Called when the second thread has started, or when the work is done without it.
void Call::note_wake() {
  if (!woken_.exchange(true)) (pool_ == Pool::borrowed ? borrowed_wake : own_wake).took(nanoseconds_since(run_begun_));
}

bool Call::interrupted(void* self) {
  auto& call = *static_cast<Call*>(self);
  if (call.stopped_) return true;
  if (const int poll = call.host_.forced.interrupt) {
    if (++call.polls_ != poll) return false;
    std::raise(SIGINT);
  } else {
    const auto now = std::chrono::steady_clock::now();
    if (now < call.next_poll_) return false;
    call.next_poll_ = now + std::chrono::milliseconds(100);
  }
  const KernelAside aside(call.caller_mode_);
  return call.stopped_ = call.poll_() || call.lost_threads();
}

// Whether this is a child process forked during a call of several threads.
bool Call::lost_threads() const { return forks_ != forks && host_.threads > 1; }

void Call::rest(void* self) {
  auto& call = *static_cast<Call*>(self);
  const uint32_t seen = call.wakes_;
  if (!call.over_) call.wakes_.wait(seen);
}

void Call::call_back(void* self, bool resting) {
  auto& call = *static_cast<Call*>(self);
  if (call.lost_threads() || (!resting && !call.alone_) || (crowd.lasts() && !call.host_.forced.rest)) return;
  if (resting) call.wake();
  if (call.alone_) call.alone_ = false, Workers::instance().post(call.host_.threads, enter, &call);
}

void Call::wake() {
  ++wakes_;
  wakes_.notify_all();
}

}  // namespace throughtime
