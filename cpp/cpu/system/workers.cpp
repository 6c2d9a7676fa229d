// See workers.hpp.
#include "workers.hpp"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

#include "processor.hpp"

namespace throughtime {

namespace {

std::atomic<Workers*> current{nullptr};

// Waits while `state` is `value`: polls for 50 us, then sleeps.
void wait_while(std::atomic<uint32_t>& state, uint32_t value) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
  while (state.load(std::memory_order_acquire) == value) {
    for (int i = 0; i < 16; ++i) pause();
    if (std::chrono::steady_clock::now() > until) state.wait(value, std::memory_order_acquire);
  }
}

// Local to this file: std::thread's code for any other type would be a symbol that the extension exports.
struct Start {
  Workers& workers;
  Workers::Worker& worker;
  int thread;
  void operator()() const { workers.work(worker, thread); }
};

}  // namespace

Workers& Workers::instance() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current = nullptr; });
  (void)registered;
  Workers* found = current;
  if (!found) {
    auto* fresh = new Workers;
    if (current.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;
  }
  return *found;
}

int Workers::prepare(int threads) noexcept {
  while (int(workers_.size()) < threads - 1 && start_one()) {
  }
  return std::min(threads, int(workers_.size()) + 1);
}

// Nothing may fail once the thread runs, because it uses its Worker forever.
bool Workers::start_one() noexcept {
  try {
    workers_.reserve(workers_.size() + 1);
    auto worker = std::make_unique<Worker>();
    std::thread(Start{*this, *worker, int(workers_.size()) + 1}).detach();
    workers_.push_back(std::move(worker));
    return true;
  } catch (const std::exception&) {  // no memory, or too many threads
    return false;
  }
}

void Workers::post(int threads, void (*body)(void*, int), void* argument) {
  body_ = body;
  argument_ = argument;
  for (int i = 0; i < threads - 1; ++i) {
    workers_[size_t(i)]->state = posted;  // sequentially consistent: notify must not look for sleepers before it
    workers_[size_t(i)]->state.notify_all();
  }
}

void Workers::close(int threads) {
  for (int i = 0; i < threads - 1; ++i) {
    auto& state = workers_[size_t(i)]->state;
    uint32_t expected = posted;
    if (!state.compare_exchange_strong(expected, idle)) wait_while(state, inside);
  }
}

void Workers::work(Worker& worker, int thread) {
  for (;;) {
    wait_while(worker.state, idle);
    uint32_t expected = posted;
    if (!worker.state.compare_exchange_strong(expected, inside)) continue;
    body_(argument_, thread);
    worker.state = idle;
    worker.state.notify_all();
  }
}

}  // namespace throughtime
