// The forward steps as one launch. In each step, a block multiplies its recurrent weights with the h of all units, which the
// blocks of its group exchange; its warps divide the sum. Then one thread per unit and sequence adds the parts, evaluates the
// cell and sends its h. In a cluster, h is stored into every block's shared memory, and the hardware's barrier ends the step.
// In a grid, h goes through memory (L2): readers poll the words, which hold a reserved NaN until written. The ring has four
// slots. A block resets its part of a slot after all blocks have read it, one step and one fence before it is polled again.
#pragma once

#include "../../step/forward.hpp"
#include "../step/stretch.hpp"
#include "weights.hpp"

namespace throughtime::cuda {

constexpr uint32_t unwritten = 0xffffffff;

template <class S>
struct PersistentForward {
  ForwardSteps<S> steps;
  PersistentPlan plan;
  const uint4* packed;
  uint32_t* exchange;  // only for a grid: (groups, slots, column tiles, unit tiles, terms, 64)
};

TT_DEVICE bool is_written(uint2 words) { return words.x != unwritten && words.y != unwritten; }
TT_DEVICE bool is_written(uint4 words) { return is_written(uint2{words.x, words.y}) && is_written(uint2{words.z, words.w}); }

// Words as they may be sent: the NaN that marks unwritten words becomes the neighbouring NaN.
TT_DEVICE uint32_t written(uint32_t bits) { return bits < unwritten ? bits : unwritten - 1; }
TT_DEVICE uint4 written(uint4 words) { return {written(words.x), written(words.y), written(words.z), written(words.w)}; }

// Polls until the words have been written.
template <class Words>
TT_DEVICE void wait_for(const Words* from, Words& found) {
  while (!is_written(found)) {
    pause();
    found = load_relaxed(from);
  }
}

// Shared memory of a block; weights come last. In a cluster h is in shared memory, so two warps read the same h, each for half
// of the tiles, which leaves half as many parts to add. From L2 only one warp reads each h.
template <class C, int Q, int terms, bool clustered>
struct ForwardSharedLayout {
  static constexpr int tiles = Q * C::recurrent, sharers = clustered && tiles % 2 == 0 ? 2 : 1;
  static constexpr int warps = persistent_warps / sharers;
  static constexpr int parts_floats = warps * tiles * result_floats;

  // Unit tiles, including those that the last block may lack.
  TT_INLINE static int padded_tiles(const PersistentPlan& plan) { return plan.size * Q; }
  // Words of one slot: (column tiles, unit tiles, terms, 64).
  TT_INLINE static int64_t slot_words(const PersistentPlan& plan) {
    return int64_t(plan.column_tiles) * padded_tiles(plan) * terms * 64;
  }
  // Words of all slots of a grid.
  static int64_t exchange_words(const PersistentPlan& plan) { return 4 * slot_words(plan) * plan.groups; }

  static Needs needs(const PersistentPlan& plan) {
    const int64_t handed = clustered ? int64_t(2) * padded_tiles(plan) * terms * 64 : 0;
    return {2 * parts_floats * 4, (handed + C::states * Q * result_floats) * 4, warps, tiles / sharers};
  }
};

template <class C, class S, int terms, int Q, bool clustered>
class ForwardBlock {
  static constexpr int G = C::gates, R = C::recurrent, tiles = Q * R;
  static constexpr int pairs = Q * result_floats;  // (unit, sequence) pairs in a tile of columns: at most one per thread
  using SharedLayout = ForwardSharedLayout<C, Q, terms, clustered>;
  static constexpr int own_tiles = tiles / SharedLayout::sharers;  // per warp
  using Weights = ResidentWeights<S, own_tiles, terms, !clustered>;

 public:
  TT_DEVICE explicit ForwardBlock(const PersistentForward<S>& of)
      : f(of), plan(of.plan), rules{of.steps.p, 0}, group(block() / of.plan.size), rank(block() % of.plan.size) {
    working = thread() < pairs;
    unit = int64_t(rank) * Q * tile + thread() / result_floats * tile + thread() % tile;
    column = thread() % result_floats / tile;
    parts = reinterpret_cast<float*>(shared_memory());
    states = parts + 2 * SharedLayout::parts_floats;
    uint32_t* const handed = reinterpret_cast<uint32_t*>(states + C::states * pairs * plan.column_tiles);
    slot_words = SharedLayout::slot_words(plan);
    slots = clustered ? handed : f.exchange + 4 * slot_words * group;
    shared_weights = reinterpret_cast<uint4*>(clustered ? handed + 2 * slot_words : handed);
    for (int g = 0; g < R; ++g) bias[g] = bias_of(bias_hh, g);
    for (int g = 0; g < G; ++g) (C::split ? input_bias[g] : bias[g]) += bias_of(bias_ih, g);
  }

  TT_DEVICE void run() {
    const Weights weights(f.packed, shared_weights, plan, rank);
    sync_block();
    if constexpr (clustered) cluster_arrive(), cluster_wait();  // no block may write into one that has not started
    for (int n = 0; n < plan.column_tiles; ++n) start(n);
    if constexpr (clustered) send(0);
    look_ahead(f.steps.begin, 0);
    if constexpr (clustered) cluster_wait();
    int buffer = 0;
    for (int64_t s = f.steps.begin; s < f.steps.end; ++s) {
      const int64_t k = s - f.steps.begin;
      for (int n = 0; n < plan.column_tiles; ++n, buffer ^= 1) {
        product(weights, k, n, buffer);
        sync_block();
        if (working) step(s, n, buffer);
        clear(k + 3, n);
        const bool last = n + 1 == plan.column_tiles, sends = clustered && last && s + 1 < f.steps.end;
        if (sends) send(k + 1);
        keep();
        look_ahead(last ? s + 1 : s, last ? 0 : n + 1);
        if (sends) cluster_wait();
      }
    }
    for (int n = 0; n < plan.column_tiles; ++n) finish(n);
  }

 private:
  // Inputs of one unit of one sequence at one step, prefetched while the step before it runs.
  struct Ahead {
    float x[G];
    int flags, next_flags;
  };

  // A step's outputs, stored after its h has been sent.
  struct Results {
    float next[C::states], saved[C::saved + 1], output;
    int64_t s, b = -1;  // -1: none
  };

  // This thread's unit of one sequence at one step, in registers and shared memory; see step/forward.hpp. If the unit or the
  // sequence does not exist, all its numbers are zero.
  struct At {
    using V = float;
    ForwardBlock& block;
    int n, flags;

    TT_DEVICE float old_state(int i) const { return block.state(i, n); }
    TT_DEVICE void load_inputs(float* x) const {
      for (int g = 0; g < G; ++g) x[g] = C::split ? block.ahead.x[g] + block.input_bias[g] : block.ahead.x[g];
    }
    TT_DEVICE static bool zoned(int) { return false; }
    TT_DEVICE static float fraction(int) { return 0; }
    TT_DEVICE void save(const float* a) const {
      for (int i = 0; i < C::saved; ++i) block.results.saved[i] = a[i];
    }
    TT_DEVICE void set_output(float y) const { block.results.output = y; }
    TT_DEVICE void set_state(int i, float after) const {
      block.state(i, n) = block.results.next[i] = block.exists(n) ? after : 0.0f;
    }
  };

  TT_DEVICE int64_t H() const { return f.steps.p.H; }
  TT_DEVICE float bias_of(Parameter bias, int g) const {
    const S* const all = f.steps.p.weights[bias];
    return all && working && unit < H() ? to_float(all[g * H() + unit]) : 0.0f;
  }
  TT_DEVICE int64_t sequence(int n) const { return (int64_t(group) * plan.column_tiles + n) * columns + column; }
  TT_DEVICE bool exists(int n) const { return working && unit < H() && sequence(n) < f.steps.p.B; }
  TT_DEVICE float& state(int i, int n) const { return states[(i * plan.column_tiles + n) * pairs + thread()]; }
  TT_DEVICE int flags(int64_t s, int64_t b) const { return s < f.steps.p.T && rules.ruled() ? rules.flags(s, b) : 0; }
  TT_DEVICE uint32_t* words(int64_t k, int n, int unit_tile) const {
    const int64_t slot = clustered ? k % 2 : k % 4;
    return slots + slot * slot_words + (int64_t(n) * SharedLayout::padded_tiles(plan) + unit_tile) * terms * 64;
  }

  TT_DEVICE void look_ahead(int64_t s, int n) {
    ahead = {};
    if (s >= f.steps.end || !exists(n)) return;
    const float* const x = f.steps.input.at(s) + sequence(n) * G * H() + unit;
    for (int g = 0; g < G; ++g) ahead.x[g] = x[g * H()];
    ahead.flags = flags(s, sequence(n));
    ahead.next_flags = flags(s + 1, sequence(n));
  }

  // Loads the state before the first step, and sends its h.
  TT_DEVICE void start(int n) {
    if (!working) return;
    for (int i = 0; i < C::states; ++i) state(i, n) = exists(n) ? f.steps.carried[i][sequence(n) * H() + unit] : 0.0f;
    hand_on(0, n, state_before(exists(n) ? flags(f.steps.begin, sequence(n)) : 0, state(0, n)));
  }

  TT_DEVICE void finish(int n) const {
    for (int i = 0; i < C::states; ++i)
      if (exists(n)) f.steps.carried[i][sequence(n) * H() + unit] = state(i, n);
  }

  // Writes h before step k of this launch to its slot; two neighbouring units form one word.
  TT_DEVICE void hand_on(int64_t k, int n, float h) {
    Factor<S> own[terms];
    split<S>(h, own);
    const int q = thread() / result_floats;
    uint32_t* const to = words(k, n, rank * Q + q) + word_of(thread() % tile, column);
    for (int t = 0; t < terms; ++t) {
      const uint32_t other = shuffle_xor(uint32_t(own[t].bits), 1);
      if (thread() % 2) continue;
      const uint32_t both = word(own[t].bits, uint16_t(other));
      if constexpr (clustered) to[t * 64] = both;
      else store_relaxed(to + t * 64, both);
    }
  }

  // In a grid: resets the block's part of the slot of step k, three steps ahead, when all blocks have read its old contents.
  // One warp, an idle one if there is any, resets it and then fences, so that the reset is visible before anything that this
  // block sends after its next barrier.
  TT_DEVICE void clear(int64_t k, int n) const {
    if constexpr (!clustered) {
      constexpr int clearing_warp = pairs < persistent_threads ? pairs / warp_size : 0;
      if (thread() / warp_size != clearing_warp) return;
      uint4* const at = reinterpret_cast<uint4*>(words(k, n, rank * Q));
      for (int i = thread() % warp_size; i < Q * terms * 16; i += warp_size)
        store_relaxed(at + i, uint4{unwritten, unwritten, unwritten, unwritten});
      fence();
    }
  }

  // In a cluster: sends the block's own h before step k to all other blocks. cluster_wait returns when all have arrived.
  TT_DEVICE void send(int64_t k) const {
    sync_block();
    constexpr int quadruples = Q * terms * 16;  // in a tile of columns
    for (int to = thread() / warp_size; to < plan.size; to += persistent_warps)
      for (int n = 0; to != rank && n < plan.column_tiles; ++n) {
        uint4* const from = reinterpret_cast<uint4*>(words(k, n, rank * Q));
        for (int i = thread() % warp_size; i < quadruples; i += warp_size) store_remote(from + i, to, from[i]);
      }
    cluster_arrive();
  }

  // Stores a warp's part of the recurrent product in `parts`.
  TT_DEVICE void product(const Weights& weights, int64_t k, int n, int buffer) const {
    const int lane = thread() % warp_size, warp = thread() / warp_size % SharedLayout::warps;
    float sums[own_tiles][4] = {};
    const uint2* const first_place = reinterpret_cast<const uint2*>(words(k, n, warp)) + lane;
    const auto place = [&](int round) { return first_place + round * (SharedLayout::warps * terms * 32); };
    const auto ask = [&](int round) {
      RightFactor<terms> h;
#pragma unroll
      for (int t = 0; t < terms; ++t) h.parts[t] = clustered ? place(round)[t * 32] : load_relaxed(place(round) + t * 32);
      return h;
    };
    const auto settle = [&](int round, RightFactor<terms>& h) {
      if constexpr (!clustered) {
#pragma unroll
        for (int t = 0; t < terms; ++t) wait_for(place(round) + t * 32, h.parts[t]);
        sync_warp();
      }
    };
    const auto multiply = [&](int m, const uint4(&a)[terms], const RightFactor<terms>& h) {
      multiply_terms<S>(sums[m], a, h.parts);
    };
    weights.for_rounds((plan.all_tiles - warp + SharedLayout::warps - 1) / SharedLayout::warps, ask, settle, multiply);
    const int first = warp * tiles + thread() / warp_size / SharedLayout::warps * own_tiles;
    uint4* const to = reinterpret_cast<uint4*>(parts_of(buffer)) + first * warp_size + quadruple_of_lane(lane);
#pragma unroll
    for (int m = 0; m < own_tiles; ++m) to[m * warp_size] = quadruple(sums[m]);
  }

  TT_DEVICE float* parts_of(int buffer) const { return parts + buffer * SharedLayout::parts_floats; }

  TT_DEVICE void step(int64_t s, int n, int buffer) {
    const int q = thread() / result_floats;
    const float* const from = parts_of(buffer) + q * R * result_floats + number_of(thread() % tile, column);
    float r[R];
#pragma unroll
    for (int g = 0; g < R; ++g) {
      r[g] = bias[g];
#pragma unroll
      for (int w = 0; w < SharedLayout::warps; ++w) r[g] += from[(w * tiles + g) * result_floats];
    }
    results.s = s, results.b = exists(n) ? sequence(n) : -1;
    ForwardStep<C, At>{{*this, n, ahead.flags}}.run(r);
    if (s + 1 < f.steps.end) hand_on(s + 1 - f.steps.begin, n, state_before(ahead.next_flags, results.next[0]));
  }

  TT_DEVICE void keep() {
    const int64_t s = results.s, b = results.b;
    if (b < 0) return;
    results.b = -1;
    for (int i = 0; i < C::states; ++i)
      if (S* const kept = f.steps.kept(i, s)) from_float(results.next[i], kept[b * H() + unit]);
    if (f.steps.saved.data)
      for (int i = 0; i < C::saved; ++i) from_float(results.saved[i], f.steps.saved.at(s)[(b * C::saved + i) * H() + unit]);
    const View<S>& y = f.steps.output;
    if (y.data) from_float(results.output, y.data[rules.time(s) * y.time + b * y.batch + unit]);
  }

  const PersistentForward<S>& f;
  const PersistentPlan& plan;
  const Steps<S> rules;
  const int group, rank;  // group of blocks, and this block's rank in it
  bool working;
  int64_t unit, slot_words;
  int column;
  float *parts, *states;
  uint32_t* slots;
  uint4* shared_weights;
  float bias[R], input_bias[G] = {};  // b_hh, plus b_ih if the cell uses only the sum of x and r
  Ahead ahead;
  Results results;
};

template <class C, class S, int terms, int Q, bool clustered>
TT_KERNEL void TT_LAUNCH_BOUNDS(persistent_threads, 1) persistent_forward_kernel(PersistentForward<S> f) {
  ForwardBlock<C, S, terms, Q, clustered>(f).run();
}

}  // namespace throughtime::cuda
