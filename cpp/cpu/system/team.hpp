// The threads of one call. Work is cut into parts, one per thread, and runs in phases: a phase runs its body once for every
// part. A thread runs its own part. If the owner of another part is absent (not awake yet, or at rest because its core is busy
// with something else), the thread runs that part as well. So a call starts at once, may lose threads and get them back, and a
// part is the same work on any thread.
#pragma once

#include "../../kernels.hpp"
#include "../../number.hpp"
#include "processor.hpp"

namespace throughtime::TT_ISA {

// Scratch memory of one call, from the host.
template <class T>
T* scratch(const Host& host, int64_t count) {
  return static_cast<T*>(host.allocate(host.context, size_t(count) * sizeof(T)));
}

// A phase of a single part, for which no other part waits.
template <class Part>
struct OnePart {
  const Part& part;

  template <class Body>
  bool operator()(const Body& body) const {
    body(part);
    return !part.unit->stopped();
  }
};

class Team {
 public:
  explicit Team(const Host& host) : host_(host), seats_(scratch<Seat>(host, host.threads)) {
    for (int i = 0; i < host.threads; ++i) seats_[i] = {};
    seats_[0].here = 1;
  }

  // Each thread calls this first.
  void enter(int thread) { publish(seats_[thread].here, 1); }

  // Runs one phase: returns when body(part) is done for every part; false if the call must stop.
  template <class Body>
  bool each(int thread, const Body& body) {
    const int64_t phase = start(thread, body);
    rest_if_asked(thread);
    return finish(thread, phase, body);
  }

  // First half of a phase: runs the thread's own part and those of absent owners. Returns the number of the phase.
  template <class Body>
  int64_t start(int thread, const Body& body) {
    const int64_t phase = ++seats_[thread].phase;
    if (host_.threads == 1) {
      body(0);
    } else {
      wait_for(seats_[thread].done, phase - 1);  // another thread may still be running this part
      run_part(thread, phase, body);
      for (int i = 0; i < host_.threads; ++i)
        if (!read(seats_[i].here)) run_part(i, phase, body);
    }
    return phase;
  }

  // Second half of a phase: waits until every part is done, and runs those of absent owners. The next phase's body may call it.
  template <class Body>
  bool finish(int thread, int64_t phase, const Body& body) {
    return wait(thread, phase, [&](int part) { return !read(seats_[part].here) && run_part(part, phase, body); });
  }

  // The same, but runs no other part. An owner that has gone to rest since this phase was started is called back.
  bool finish(int thread, int64_t phase) {
    return wait(thread, phase, [&](int part) {
      if (thread == 0 && !read(seats_[part].here)) host_.call_back(host_.context, true);
      return false;
    });
  }

  // Runs `count` phases, each of which begins before the previous one is done: body(part, i, ready) waits for that one by
  // calling ready(), which returns false if the call must stop.
  template <class Body>
  bool overlapped(int thread, int64_t count, const Body& body) {
    const int64_t before = seats_[thread].phase;
    const auto of_phase = [&](int64_t i) { return [&, i](int part) { run_overlapped(thread, part, i, before + 1 + i, body); }; };
    for (int64_t i = 0; i < count; ++i) {
      if (stopped()) return false;
      start(thread, of_phase(i));
      rest_if_asked(thread);
    }
    return finish(thread, before + count, of_phase(count - 1));
  }

  // Between phases: a thread that was asked to rest sleeps until it is called back. The others run its parts meanwhile.
  void rest_if_asked(int thread) {
    Seat& own = seats_[thread];
    if (thread == 0 || (!read(own.asked) && !(host_.forced.rest && own.phase % host_.forced.rest == 0))) return;
    publish(own.asked, 0);
    publish(own.here, 0);
    __atomic_fetch_add(&resting_, 1, __ATOMIC_SEQ_CST);
    host_.rest(host_.context);
    __atomic_fetch_sub(&resting_, 1, __ATOMIC_SEQ_CST);
    publish(own.here, 1);
    own.since = ticks();
  }

  // Waits until another thread's `count` reaches `least`; false if the call must stop.
  bool wait_for(const int64_t& count, int64_t least) const {
    const int64_t begun = ticks();
    while (read(count) < least) {
      if (stopped()) return false;
      wait_a_little(ticks() - begun > host_.patience);
    }
    return true;
  }

  // Every thread polls this between chunks and within long ones. Thread 0 polls the host for all, and calls threads back.
  bool interrupted(int thread) {
    if (thread == 0) {
      if (host_.interrupted(host_.context)) publish(stop_, true);
      host_.call_back(host_.context, read(resting_) != 0);
    }
    return stopped();
  }

  bool stopped() const { return read(stop_); }

  // Multiplications between two polls of a thread: they take half a millisecond in cache and up to 7 ms if weights come from
  // memory; a poll takes 50 ns.
  int64_t work_per_poll() const { return host_.forced.polls_often ? 0 : 1 << 24; }

 private:
  // State of a thread and of its part, grouped by writer.
  struct Seat {
    alignas(64) int64_t claimed;  // the part's last phase that a thread runs or has run
    alignas(64) int64_t done;     // the part's last phase that is done
    alignas(64) int64_t here;     // whether the thread runs its part itself
    int64_t asked;                // whether it was asked to rest
    alignas(64) int64_t phase;    // the last phase that the thread has started
    int64_t since;                // ticks, when its last wait ended
  };

  template <class T>
  static T read(const T& value) {
    return __atomic_load_n(&value, __ATOMIC_ACQUIRE);
  }
  template <class T, class Value>
  static void publish(T& to, Value value) {
    __atomic_store_n(&to, T(value), __ATOMIC_RELEASE);
  }

  // Returns whether this thread has run the part.
  template <class Body>
  bool run_part(int part, int64_t phase, const Body& body) {
    Seat& seat = seats_[part];
    int64_t before = phase - 1;
    if (read(seat.done) != before ||
        !__atomic_compare_exchange_n(&seat.claimed, &before, phase, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      return false;
    body(part);
    publish(seat.done, phase);
    return true;
  }

  template <class Body>
  void run_overlapped(int thread, int part, int64_t i, int64_t phase, const Body& body) {
    body(part, i,
         [&] { return finish(thread, phase - 1, [&](int other) { run_overlapped(thread, other, i - 1, phase - 1, body); }); });
  }

  // Waits until every part of this phase is done; helps(part) may run one.
  template <class Help>
  bool wait(int thread, int64_t phase, const Help& helps) {
    if (host_.threads > 1) {
      for (int i = 0; i < host_.threads; ++i)
        if (read(seats_[i].done) < phase && !wait_for_part(thread, i, phase, helps)) return false;
      seats_[thread].since = ticks();
    }
    return !stopped();
  }

  // A part that takes longer than this thread's own work plus 50 us belongs to a thread that is not running: there are more
  // busy threads than cores. If that costs too much, one thread rests: that one, or if it is the caller, the last one.
  template <class Help>
  bool wait_for_part(int thread, int part, int64_t phase, const Help& helps) {
    const int64_t begun = ticks(), worked = begun - seats_[thread].since;
    int64_t told = begun;
    bool long_wait = false, asked = false;
    const auto look = [&] {
      const int64_t now = ticks(), waited = now - begun - host_.patience;
      long_wait = waited > worked / 4;
      if (waited <= worked || asked) return;
      asked = host_.stalls(host_.context, now - told);
      told = now;
      if (asked) ask_to_rest(part);
    };
    for (int spins = 1; read(seats_[part].done) < phase; ++spins) {
      if (stopped()) return false;
      if (helps(part)) break;
      if (long_wait || spins % 32 == 0) look();
      wait_a_little(long_wait);
    }
    if (long_wait) look();
    return true;
  }

  void ask_to_rest(int part) {
    int last = part;
    for (int i = 1; part == 0 && i < host_.threads; ++i)
      if (read(seats_[i].here)) last = i;
    if (last > 0) publish(seats_[last].asked, 1);
  }

  void wait_a_little(bool gives_up) const {
    if (gives_up) host_.nap();
    else if (host_.crowded) host_.yield();
    else pause();
  }

  const Host& host_;
  Seat* seats_;
  alignas(64) bool stop_ = false;
  alignas(64) int64_t resting_ = 0;  // threads
};

// Polls for an interrupt from within a thread's products, because a chunk may take seconds.
class Poll {
 public:
  Poll() = default;  // for short products: never polls
  Poll(Team& team, int thread) : team_(&team), thread_(thread), left_(team.work_per_poll()) {}

  // Called before `products` multiplications. False if the call must stop: the caller then returns without them.
  TT_INLINE bool goes_on(int64_t products) {
    left_ -= products;
    return left_ >= 0 || poll();
  }
  bool stopped() const { return team_->stopped(); }

 private:
  TT_PHASE bool poll() {
    const bool stops = team_->interrupted(thread_);
    left_ = stops ? 0 : team_->work_per_poll();
    return !stops;
  }

  Team* team_ = nullptr;
  int thread_ = 0;
  int64_t left_ = INT64_MAX;
};

// Flushes subnormals to zero during its lifetime: a product with one costs over a hundred cycles. Restores the caller's mode.
class FlushSubnormals {
 public:
#if defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(mode_));
    asm volatile("msr fpcr, %0" ::"r"(mode_ | uint64_t(1) << 24));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(mode_)); }
#else
  FlushSubnormals() : mode_(_mm_getcsr()) { _mm_setcsr(uint32_t(mode_) | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(uint32_t(mode_)); }
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;

 private:
  uint64_t mode_;
};

}  // namespace throughtime::TT_ISA
