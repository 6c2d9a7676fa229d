// The backward steps as one launch. A block owns the same units as in the forward. It computes their delta, multiplies it with
// its recurrent weights, and sends each block the part of dL/dh for that block's units; the receiver adds the parts in the
// order of the blocks. So the values exchanged are as large as h in float32, not as the gates. In a cluster, parts are stored
// into the receiver's shared memory, and the hardware's barrier ends the step. In a grid, they go through memory (L2): the
// receiver polls the values, which hold a reserved NaN until written, and resets them one step and one fence before the slot is
// reused. The ring has two slots in a cluster, three in a grid.
#pragma once

#include "../../step/backward.hpp"
#include "forward.hpp"

namespace throughtime::cuda {

template <class S>
struct PersistentBackward {
  BackwardSteps<S> steps;
  PersistentPlan plan;
  const uint4* packed;
  uint32_t* exchange;  // only for a grid: (groups, blocks, slots, column tiles, blocks, Q, 128)
};

// Shared memory of a block; weights come last.
template <class C, int Q, int terms, bool clustered>
struct BackwardSharedLayout {
  // Words of one slot of one receiver: (column tiles, blocks, Q, 128).
  TT_INLINE static int64_t slot_words(const PersistentPlan& plan) {
    return int64_t(plan.column_tiles) * plan.size * Q * result_floats;
  }
  static constexpr int delta_words = Q * C::recurrent * terms * 64;
  static constexpr int parts_floats = clustered ? 0 : persistent_warps * Q * result_floats;  // sums of received parts
  // Words of all slots of a grid.
  static int64_t exchange_words(const PersistentPlan& plan) { return 3 * slot_words(plan) * plan.blocks(); }

  static Needs needs(const PersistentPlan& plan) {
    const int64_t received = clustered ? int64_t(2) * plan.size * Q * result_floats : 0;
    return {(2 * delta_words + parts_floats) * 4, (received + C::states * Q * result_floats) * 4, persistent_warps,
            Q * C::recurrent};
  }
};

template <class C, class S, int terms, int Q, bool clustered>
class BackwardBlock {
  static constexpr int G = C::gates, R = C::recurrent, tiles = Q * R, saved = C::saved ? C::saved : 1;
  static constexpr int pairs = Q * result_floats;  // (unit, sequence) pairs in a tile of columns: at most one per thread
  static constexpr int ring_slots = clustered ? 2 : 3;
  static constexpr int asked_at_once = 8;                                        // parts, in 32 registers
  static constexpr int first_clearing = pairs < persistent_threads ? pairs : 0;  // the first thread that clears
  using SharedLayout = BackwardSharedLayout<C, Q, terms, clustered>;
  using Weights = ResidentWeights<S, tiles, terms, false>;

 public:
  TT_DEVICE explicit BackwardBlock(const PersistentBackward<S>& of)
      : f(of),
        plan(of.plan),
        rules{of.steps.p, of.steps.p.truncate},
        group(block() / of.plan.size),
        rank(block() % of.plan.size) {
    working = thread() < pairs;
    unit = int64_t(rank) * Q * tile + thread() / result_floats * tile + thread() % tile;
    column = thread() % result_floats / tile;
    deltas = reinterpret_cast<uint32_t*>(shared_memory());
    parts = reinterpret_cast<float*>(deltas + 2 * SharedLayout::delta_words);
    carried = parts + SharedLayout::parts_floats;
    uint32_t* const received = reinterpret_cast<uint32_t*>(carried + C::states * pairs * plan.column_tiles);
    slot_words = SharedLayout::slot_words(plan);
    slots = clustered ? received : f.exchange + ring_slots * slot_words * block();
    shared_weights = reinterpret_cast<uint4*>(clustered ? received + ring_slots * slot_words : received);
  }

  TT_DEVICE void run() {
    const Weights weights(f.packed, shared_weights, plan, rank);
    for (int n = 0; n < plan.column_tiles; ++n) start(n);
    sync_block();
    look_ahead(f.steps.end - 1, 0);
    if constexpr (clustered) cluster_arrive(), cluster_wait();  // no block may write into one that has not started
    int buffer = 0;
    for (int64_t s = f.steps.end - 1; s >= f.steps.begin; --s) {
      const int64_t k = f.steps.end - 1 - s;
      for (int n = 0; n < plan.column_tiles; ++n, buffer ^= 1) {
        if (k > 0) collect(k - 1, n);
        if (working) step(s, n, buffer);
        if (k > 0) clear(k - 1, n);
        sync_block();
        product(weights, k, n, buffer);
        const bool last = n + 1 == plan.column_tiles;
        if (clustered && last) cluster_arrive();
        keep();
        look_ahead(last ? s - 1 : s, last ? 0 : n + 1);
        if (clustered && last) cluster_wait();
      }
    }
    for (int n = 0; n < plan.column_tiles; ++n) {
      collect(f.steps.end - 1 - f.steps.begin, n);
      finish(n);
      sync_block();
    }
  }

 private:
  // Inputs of one unit of one sequence at one step, prefetched while the step after it runs.
  struct Ahead {
    float a[saved], old[C::states], next, loss[C::states];
    int flags, later_flags;
  };

  // A step's outputs, stored after its parts have been sent.
  struct Results {
    float dn[C::states], dx[G], dr[R];
    int64_t s, b = -1;  // -1: none
  };

  // This thread's unit of one sequence at one step, in registers and shared memory; see step/backward.hpp.
  struct At {
    using V = float;
    BackwardBlock& block;
    int n, flags;

    TT_DEVICE float carried(int i) const { return block.carry(i, n); }
    TT_DEVICE void set_carried(int i, float d) const { block.carry(i, n) = d; }
    TT_DEVICE void load_saved(float* a) const {
      for (int i = 0; i < C::saved; ++i) a[i] = block.ahead.a[i];
    }
    TT_DEVICE float old_state(int i) const { return block.ahead.old[i]; }
    TT_DEVICE float new_state(int i) const { return i == 0 ? block.ahead.next : 0.0f; }
    TT_DEVICE static bool has_output_loss() { return true; }
    TT_DEVICE float output_loss() const { return block.ahead.loss[0]; }
    TT_DEVICE static bool has_cell_loss() { return C::states == 2; }
    TT_DEVICE float cell_loss() const { return block.ahead.loss[C::states - 1]; }
    TT_DEVICE static bool zoned(int) { return false; }
    TT_DEVICE static float fraction(int) { return 0; }
    TT_DEVICE static float keep(float value) { return value; }
    TT_DEVICE void set_state_gradient(int i, float total) const { block.results.dn[i] = total; }
    TT_DEVICE void set_deltas(const float*, const float* dx, const float* dr) const {
      for (int g = 0; g < G; ++g) block.results.dx[g] = dx[g];
      for (int g = 0; g < R; ++g) block.results.dr[g] = C::split ? dr[g] : dx[g];
    }
  };

  TT_DEVICE const Backward<S>& p() const { return f.steps.p; }
  TT_DEVICE int64_t H() const { return p().H; }
  TT_DEVICE int64_t sequence(int n) const { return (int64_t(group) * plan.column_tiles + n) * columns + column; }
  TT_DEVICE bool exists(int n) const { return working && unit < H() && sequence(n) < p().B; }
  TT_DEVICE float& carry(int i, int n) const { return carried[(i * plan.column_tiles + n) * pairs + thread()]; }
  TT_DEVICE int flags(int64_t s, int64_t b) const { return s >= 0 && s < p().T && rules.ruled() ? rules.flags(s, b) : 0; }
  // Block `from`'s part for block `to`'s units; in a cluster, the same offset in this block's shared memory.
  TT_DEVICE uint32_t* part(int64_t k, int n, int from, int to) const {
    const int64_t of_block = clustered ? 0 : int64_t(to - rank) * ring_slots * slot_words;
    return slots + of_block + k % ring_slots * slot_words + (int64_t(n) * plan.size + from) * pairs;
  }

  TT_DEVICE void look_ahead(int64_t s, int n) {
    ahead = {};
    if (s < f.steps.begin || !exists(n)) return;
    const int64_t b = sequence(n), t = rules.time(s), at = b * H() + unit;
    ahead.flags = flags(s, b), ahead.later_flags = flags(s + 1, b);
    if (ahead.flags & inactive) return;  // padding is not read
    for (int i = 0; i < C::saved; ++i) ahead.a[i] = to_float(f.steps.saved.at(s)[(b * C::saved + i) * H() + unit]);
    for (int i = 0; i < C::states; ++i) ahead.old[i] = ahead.flags & reset ? 0.0f : to_float(f.steps.before[i].at(s)[at]);
    ahead.next = to_float(f.steps.after[0].at(s)[at]);
    const View<const S>& dy = p().d_output;
    if (dy.data) ahead.loss[0] = to_float(dy.data[t * dy.time + b * dy.batch + unit]);
    if (C::states == 2 && p().d_cell) ahead.loss[C::states - 1] = to_float(p().d_cell[t * p().B * H() + at]);
  }

  TT_DEVICE void start(int n) const {
    for (int i = 0; working && i < C::states; ++i) carry(i, n) = exists(n) ? f.steps.carried[i][sequence(n) * H() + unit] : 0.0f;
  }

  TT_DEVICE void finish(int n) const {
    if (!exists(n)) return;
    carry(0, n) += crosses(flags(f.steps.begin, sequence(n))) ? received(f.steps.end - 1 - f.steps.begin, n) : 0.0f;
    for (int i = 0; i < C::states; ++i) f.steps.carried[i][sequence(n) * H() + unit] = carry(i, n);
  }

  // In a grid: adds all blocks' parts of step k into `parts`; each warp adds those of every eighth block.
  TT_DEVICE void collect(int64_t k, int n) const {
    if constexpr (!clustered) {
      const int lane = thread() % warp_size, warp = thread() / warp_size;
      if (warp >= plan.size && clears() && n == 0) fence();
      for (int q = 0; q < Q && rank * Q + q < plan.all_tiles; ++q) {
        float sum[4] = {};
        for (int from = warp; from < plan.size; from += asked_at_once * persistent_warps) add_parts(k, n, q, from, sum);
        reinterpret_cast<uint4*>(parts)[(warp * Q + q) * warp_size + lane] = quadruple(sum);
      }
      sync_block();
    }
  }

  // In a grid: resets the words of step k's parts for this block, once all of them are in `parts`. Idle threads do so, if there
  // are any. A fence one step later, while the other blocks' parts are in flight, makes the reset visible before this block
  // sends the parts that show the others that they may write to the slot again.
  TT_DEVICE static bool clears() { return thread() >= first_clearing; }
  TT_DEVICE void clear(int64_t k, int n) const {
    if constexpr (!clustered) {
      uint4* const at = reinterpret_cast<uint4*>(part(k, n, 0, rank));
      for (int i = thread() - first_clearing; i >= 0 && i < plan.size * (pairs / 4); i += persistent_threads - first_clearing)
        store_relaxed(at + i, uint4{unwritten, unwritten, unwritten, unwritten});
    }
  }

  // Adds the parts of several blocks; loads all of them before it polls any.
  TT_DEVICE void add_parts(int64_t k, int n, int q, int first, float (&sum)[4]) const {
    const uint4* const first_place =
        reinterpret_cast<const uint4*>(part(k, n, first, rank) + q * result_floats) + thread() % warp_size;
    const auto place = [&](int i) { return first_place + i * (persistent_warps * pairs / 4); };
    uint4 found[asked_at_once];
#pragma unroll
    for (int i = 0; i < asked_at_once; ++i)
      if (first + i * persistent_warps < plan.size) found[i] = load_relaxed(place(i));
    if (n == 0 && q == 0 && first < persistent_warps && clears()) fence();
#pragma unroll
    for (int i = 0; i < asked_at_once; ++i)
      if (first + i * persistent_warps < plan.size) {
        wait_for(place(i), found[i]);
        sum[0] += float_of(found[i].x), sum[1] += float_of(found[i].y);
        sum[2] += float_of(found[i].z), sum[3] += float_of(found[i].w);
      }
  }

  // The sum of all blocks' parts of step k for this thread's unit.
  TT_DEVICE float received(int64_t k, int n) const {
    const int in_part = thread() / result_floats * result_floats + number_of(thread() % tile, column);
    float sum = 0;
    if constexpr (clustered) {
#pragma unroll 4
      for (int from = 0; from < plan.size; ++from) sum += float_of(part(k, n, from, rank)[in_part]);
    } else {
#pragma unroll
      for (int warp = 0; warp < persistent_warps; ++warp) sum += parts[warp * pairs + in_part];
    }
    return sum;
  }

  TT_DEVICE void step(int64_t s, int n, int buffer) {
    results = {};
    results.s = s;
    if (exists(n)) {
      results.b = sequence(n);
      float dh = carry(0, n);
      if (s + 1 < f.steps.end) dh += crosses(ahead.later_flags) ? received(f.steps.end - 2 - s, n) : 0.0f;
      BackwardStep<C, At>{{*this, n, ahead.flags}}.run(dh);
    }
    for (int g = 0; g < R; ++g) put_delta(g, results.dr[g], buffer);
  }

  // Writes delta as the right factor of the block's product; two neighbouring units form one word.
  TT_DEVICE void put_delta(int g, float value, int buffer) const {
    Factor<S> own[terms];
    split<S>(value, own);
    uint32_t* const to = deltas + buffer * SharedLayout::delta_words + (thread() / result_floats * R + g) * terms * 64 +
                         word_of(thread() % tile, column);
    for (int t = 0; t < terms; ++t) {
      const uint32_t other = shuffle_xor(uint32_t(own[t].bits), 1);
      if (thread() % 2 == 0) to[t * 64] = word(own[t].bits, uint16_t(other));
    }
  }

  // Computes a warp's tiles of dL/dh and sends each to the block that owns its units.
  TT_DEVICE void product(const Weights& weights, int64_t k, int n, int buffer) const {
    const int lane = thread() % warp_size, warp = thread() / warp_size;
    const int end = (plan.all_tiles - warp + persistent_warps - 1) / persistent_warps;
    const uint2* const delta = reinterpret_cast<const uint2*>(deltas + buffer * SharedLayout::delta_words) + lane;
    static_assert(persistent_warps % Q == 0);
    uint4* const first_place =
        reinterpret_cast<uint4*>(part(k, n, rank, warp / Q) + warp % Q * result_floats) + quadruple_of_lane(lane);
    const int64_t between = clustered ? 0 : persistent_warps / Q * ring_slots * slot_words / 4;  // two rounds' words
    const auto right = [&](int m, uint2(&factors)[terms]) {
#pragma unroll
      for (int t = 0; t < terms; ++t) factors[t] = delta[(m * terms + t) * 32];
    };
    const auto give = [&](int round, const float (&sums)[4]) {
      uint4* const at = first_place + round * between;
      if constexpr (clustered) store_remote(at, (round * persistent_warps + warp) / Q, quadruple(sums));
      else store_relaxed(at, written(quadruple(sums)));
    };
    weights.for_results(end, right, give);
  }

  TT_DEVICE void keep() {
    const int64_t s = results.s, b = results.b;
    if (b < 0) return;
    results.b = -1;
    const int64_t t = rules.time(s), row = t * p().B + b;
    for (int g = 0; g < G; ++g) {
      from_float(results.dx[g], f.steps.delta_x.at(s)[(b * G + g) * H() + unit]);
      if (p().d_gates) from_float(results.dx[g], p().d_gates[(row * G + g) * H() + unit]);
    }
    if constexpr (C::split)
      for (int g = 0; g < R; ++g) from_float(results.dr[g], f.steps.delta_r.at(s)[(b * R + g) * H() + unit]);
    for (int i = 0; i < C::states; ++i)
      if (p().d_states[i]) from_float(results.dn[i], p().d_states[i][row * H() + unit]);
  }

  const PersistentBackward<S>& f;
  const PersistentPlan& plan;
  const Steps<S> rules;
  const int group, rank;  // group of blocks, and this block's rank in it
  bool working;
  int64_t unit, slot_words;
  int column;
  uint32_t* deltas;  // (2, tiles, terms, 64)
  float *parts, *carried;
  uint32_t* slots;
  uint4* shared_weights;
  Ahead ahead;
  Results results;
};

template <class C, class S, int terms, int Q, bool clustered>
TT_KERNEL void TT_LAUNCH_BOUNDS(persistent_threads, 1) persistent_backward_kernel(PersistentBackward<S> f) {
  BackwardBlock<C, S, terms, Q, clustered>(f).run();
}

}  // namespace throughtime::cuda
