// Drives the kernels from many threads at once, for ThreadSanitizer: the library's own workers, their exchange between the steps
// of a recurrence, threads at rest, interrupts, the queues of attention and linear layers, the memory pool, and the settings.
// Every result is compared, bit by bit, with that of one thread. The exit status tells whether all agree.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bindings/cpu_cells.hpp"
#include "cpu/system/host.hpp"

using namespace throughtime;

namespace {

std::atomic<int> failures{0}, comparisons{0};

void expect(bool holds, const char* what) {
  ++comparisons;
  if (!holds && ++failures <= 10) std::printf("FAILED %s\n", what);
}

std::vector<float> random_numbers(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = uniform(generator);
  return numbers;
}

// Chunks of a few steps, so that even short calls use several threads and have several phases.
Forced choices(Split split, int rest, int chunk, int interrupt = 0) {
  return {EngineKind::free, split, uint8_t(rest), true, uint16_t(interrupt), uint16_t(chunk)};
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// One forward and backward of a recurrent cell; each has its own results.
struct Recurrent {
  int64_t T, B, I, H;
  const CellKernels& cell;
  std::vector<float> x, d_output, weights[max_parameters];
  std::vector<float> output, states[max_states], saved, d_input, d_weights[max_parameters];

  Recurrent(const char* name, int64_t T, int64_t B, int64_t I, int64_t H) : T(T), B(B), I(I), H(H), cell(find_cell(name)) {
    x = random_numbers(size_t(T * B * I), 1);
    d_output = random_numbers(size_t(T * B * H), 2);
    const std::vector<Named> named = parameters(cell, I, H, H);
    for (size_t i = 0; i < named.size(); ++i)
      if (named[i].name) {
        size_t count = 1;
        for (const int64_t size : named[i].shape) count *= size_t(size);
        weights[i] = random_numbers(count, unsigned(3 + i));
        d_weights[i].resize(count);
      }
    output.resize(size_t(T * B * H));
    d_input.resize(x.size());
    for (int i = 0; i < cell.states; ++i) states[i].resize(size_t((T + 2) * B * H));
    size_t count = size_t(T);
    for (const int64_t size : saved_shape<float>(cell, B, H)) count *= size_t(size);
    saved.resize(count);
  }

  template <class Problem>
  Problem problem() {
    Problem p{};
    p.T = T, p.B = B, p.I = I, p.H = H, p.P = H;
    p.x = {x.data(), B * I, I};
    for (int i = 0; i < max_parameters; ++i)
      if (!weights[i].empty()) p.weights[i] = weights[i].data();
    for (int i = 0; i < cell.states; ++i) p.states[i] = states[i].data();
    p.saved = saved.data();
    return p;
  }

  // Whether it was stopped at the given poll.
  bool forward(int stop_at = 0) {
    auto p = problem<Forward<float>>();
    p.output = {output.data(), B * H, H};
    int polls = 0;
    const Call call([&] { return ++polls == stop_at; }, operations(cell, p));
    cell.f32.forward(p, call.host());
    return call.stopped();
  }

  void backward() {
    auto p = problem<Backward<float>>();
    p.d_output = {d_output.data(), B * H, H};
    p.d_input = {d_input.data(), B * I, I};
    for (int i = 0; i < max_parameters; ++i)
      if (!weights[i].empty()) p.d_weights[i] = d_weights[i].data();
    const Call call([] { return false; }, 2 * operations(cell, p));
    cell.f32.backward(p, call.host());
  }

  void run() { forward(), backward(); }

  bool equals(const Recurrent& other) const {
    bool equal = same(output, other.output) && same(d_input, other.d_input);
    for (int i = 0; i < max_parameters; ++i) equal &= same(d_weights[i], other.d_weights[i]);
    return equal;
  }
};

struct SelfAttention {
  static constexpr int64_t T = 700, B = 1, heads = 2, size = 8, F = heads * size;
  std::vector<float> in[4], out[4], saved;  // q, k, v, d_output; output, d_q, d_k, d_v

  SelfAttention() : saved(size_t(B * heads * 2 * T)) {
    for (unsigned i = 0; i < 4; ++i) in[i] = random_numbers(size_t(T * B * F), 20 + i), out[i].resize(in[i].size());
  }

  template <class Problem>
  Problem problem() {
    Problem p{};
    p.T = T, p.B = B, p.heads = heads, p.size = size, p.back = T, p.ahead = 0;
    p.q = {in[0].data(), B * F, F}, p.k = {in[1].data(), B * F, F}, p.v = {in[2].data(), B * F, F};
    p.saved = saved.data();
    p.output = {out[0].data(), B * F, F};
    return p;
  }

  void run() {
    const auto& kernels = level().kernels->attention->f32;
    {
      const Call call([] { return false; });
      kernels.forward(problem<AttentionForward<float>>(), call.host());
    }
    auto p = problem<AttentionBackward<float>>();
    p.d_output = {in[3].data(), B * F, F};
    p.d_q = {out[1].data(), B * F, F}, p.d_k = {out[2].data(), B * F, F}, p.d_v = {out[3].data(), B * F, F};
    const Call call([] { return false; });
    kernels.backward(p, call.host());
  }

  bool equals(const SelfAttention& other) const {
    bool equal = true;
    for (int i = 0; i < 4; ++i) equal &= same(out[i], other.out[i]);
    return equal;
  }
};

struct Linear {
  static constexpr int64_t N = 300, I = 40, O = 50;
  std::vector<float> x = random_numbers(N * I, 30), weight = random_numbers(O * I, 31), y = std::vector<float>(N * O),
                     d_x = std::vector<float>(N * I), d_weight = std::vector<float>(O * I), d_bias = std::vector<float>(O);

  void run() {
    const auto& kernels = level().kernels->linear->f32;
    {
      const Call call([] { return false; });
      kernels.forward({N, I, O, x.data(), weight.data(), nullptr, y.data()}, call.host());
    }
    const Call call([] { return false; });
    kernels.backward({N, I, O, x.data(), weight.data(), y.data(), d_x.data(), d_weight.data(), d_bias.data()}, call.host());
  }

  bool equals(const Linear& other) const {
    return same(y, other.y) && same(d_x, other.d_x) && same(d_weight, other.d_weight) && same(d_bias, other.d_bias);
  }
};

// Ran on one thread, with chunks of this many steps: the results that those of several threads must equal.
Recurrent alone(const char* cell, int64_t T, int64_t B, int64_t I, int64_t H, int chunk) {
  set_num_threads(1);
  force(choices(Split::free, 0, chunk));
  Recurrent made(cell, T, B, I, H);
  made.run();
  return made;
}

// The threads of one call: split in both ways, all at work or now and then at rest, and stopped in the middle.
void one_call_at_a_time(const char* cell, int64_t B) {
  const int64_t T = 12, I = 5, H = 70;
  const Recurrent expected = alone(cell, T, B, I, H, 4);
  for (const int threads : {2, 3, 5})
    for (const Split split : {Split::free, Split::units, Split::sequences})
      for (const int rest : {0, 1, 3}) {
        set_num_threads(threads);
        force(choices(split, rest, 4));
        Recurrent found(cell, T, B, I, H);
        found.run();
        expect(found.equals(expected), cell);
      }
  force({});
}

// Many threads make calls. One of these calls has the workers; the others run on their own thread.
void many_calls_at_once() {
  const Recurrent lstm = alone("lstm", 8, 4, 6, 40, 4);
  SelfAttention attention;
  attention.run();
  Linear linear;
  linear.run();
  set_num_threads(3);
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 6; ++round) {
        Recurrent other("lstm", 8, 4, 6, 40);
        other.run();
        expect(other.equals(lstm), "concurrent lstm");
        if (i % 2) {
          SelfAttention again;
          again.run();
          expect(again.equals(attention), "concurrent attention");
        } else {
          Linear again;
          again.run();
          expect(again.equals(linear), "concurrent linear");
        }
      }
    });
  threads.emplace_back([&] {  // settings and pool, as other threads of a program may use them meanwhile
    for (int round = 0; !over; ++round) {
      set_num_threads(1 + round % 4);
      set_terms(1 + round % 3);
      void* const block = pool_acquire(size_t(1) << (10 + round % 12));
      static_cast<char*>(block)[0] = 1;
      pool_release(block);
      if (round % 16 == 0) pool_trim(0);
      std::this_thread::yield();
    }
  });
  for (size_t i = 0; i + 1 < threads.size(); ++i) threads[i].join();
  over = true;
  threads.back().join();
  set_terms(3);
  force({});
}

// A call that is stopped leaves the workers in a state in which the next one is right.
void interrupted_calls() {
  const Recurrent expected = alone("lstm", 8, 3, 6, 40, 2);
  set_num_threads(3);
  for (int poll = 1; poll <= 12; ++poll) {
    force(choices(Split::units, 1, 2, poll));
    Recurrent stopped("lstm", 8, 3, 6, 40);
    expect(stopped.forward(1), "stopped");
    force(choices(Split::units, 0, 2));
    Recurrent next("lstm", 8, 3, 6, 40);
    next.run();
    expect(next.equals(expected), "after an interrupt");
  }
  force({});
}

}  // namespace

int main() {
  std::signal(SIGINT, SIG_IGN);  // Forced::interrupt raises it
  for (const char* cell : {"lstm", "gru_original", "rnn_tanh_layer_norm"})
    for (const int64_t B : {1, 9}) one_call_at_a_time(cell, B);
  many_calls_at_once();
  interrupted_calls();
  std::printf("%d comparisons, %d failed\n", comparisons.load(), failures.load());
  return failures != 0;
}
