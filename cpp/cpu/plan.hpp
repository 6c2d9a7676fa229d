// How a problem is cut: tile shapes, steps per chunk, and who computes what. Shapes and chunks decide rounding and come from
// sizes and instruction set alone; only the split among threads knows their number.
#pragma once

#include "../cells/cell.hpp"
#if defined(__AMX_BF16__)
#include "amx.hpp"
#endif
#include "dot.hpp"
#include "gemm.hpp"
#include "team.hpp"

namespace throughtime::TT_ISA {

// Tiles of the recurrence: forwards (and where gates are computed again) one holds `units` vectors of units with all their gates,
// backwards some vectors of units; and of the products outside it. Many sequences: 12 sums fill 16 registers, 24 fill 32.
template <class S, int gates>
struct ManyRows {
  static constexpr bool halves = false;  // whether a step's sums are two halves, one of which can start before a barrier
  template <int of_gates>
  using With = ManyRows<S, of_gates>;
  using Engine = Fma<S>;       // of the recurrence
  using ChunkEngine = Engine;  // of the products outside it
  static constexpr int units = gates <= ProductShape::vectors ? ProductShape::vectors / gates : 1;
  using Forward = Shape<(registers == 32 ? 24 : 12) / (gates * units), gates * units, 1>;
  using Again = Forward;
  using Backward = ProductShape;
  using Product = ProductShape;
};

// One sequence: at least eight sums in flight hide the latency, and narrow tiles leave work for every thread.
template <class S, int gates>
struct OneRow {
  static constexpr bool halves = true;
  template <int of_gates>
  using With = OneRow<S, of_gates>;
  using Engine = Fma<S>;
  using ChunkEngine = Engine;
  static constexpr int units = gates == 1 ? 4 : 2;
  using Forward = Shape < 1, gates *units, registers == 32 || gates<4 ? 2 : 1>;
  using Again = Shape<registers == 32 ? 3 : 1, gates * units, 1>;  // of many steps, where the states are known
  using Backward = Shape<1, 4, registers == 32 ? 4 : 2>;
  using Product = ProductShape;
};

// Of bfloat16 numbers, one sequence or many.
template <class S, int gates>
struct DotRows : ManyRows<S, gates> {
  template <int of_gates>
  using With = DotRows<S, of_gates>;
  using Engine = Dot;
  using ChunkEngine = Engine;
};

#if defined(__AMX_BF16__)
constexpr bool has_amx = true;

// Blocks of 32 x 2, for up to 16 rows 16 x 4: an even number of vectors. Backwards, narrow panels leave less of the cell's work
// until after the last product.
template <class S, int gates, int back = 4>
struct AmxRows {
  static constexpr bool halves = false;
  template <int of_gates>
  using With = AmxRows<S, of_gates, back>;
  using Engine = Amx;
  using ChunkEngine = Engine;
  static constexpr int units = gates == 1 ? 4 : gates < 4 ? 2 : 1;
  using Forward = Shape<32, gates * units, 1>;
  using Again = Forward;
  using Backward = Shape<32, back, 1>;
  using Product = Shape<32, 2, 1>;
};

// For too few sequences to fill tiles: the recurrence on vector registers, the products of a chunk on tiles.
template <class C, class S>
bool chunks_fill_tiles(const Recurrence<S>& p) {
  return p.T * p.B >= 4 * tile_rows && C::gates * p.H >= 256 && p.I + p.P >= 64;  // smaller: not measured
}

template <template <class, int> class Rows, class S, int gates>
struct ChunksOnTiles : Rows<S, gates> {
  template <int of_gates>
  using With = ChunksOnTiles<Rows, S, of_gates>;
  using ChunkEngine = Amx;
  using Product = typename AmxRows<S, gates>::Product;
};
#else
constexpr bool has_amx = false;
#endif

// The kernels for B sequences. Sapphire Rapids: six, three and one bfloat16 products on AMX beat one of floats from 8, 3 and 2
// rows on, six with few gates from 16. Zen 5: one on vector registers always does.
template <class S>
Family choose_family(int64_t B, int64_t gate_rows, const Host& host) {
  constexpr bool single = sizeof(S) == sizeof(float), amx = has_amx && single;
  const bool dot = has_dot && single && host.dot && host.terms == 1;
  const Family forced = host.forced.family;
  if (forced == Family::amx ? amx : forced != Family::free) return forced;
  if (amx && B >= (host.terms == 3 ? (gate_rows < 256 ? 16 : 8) : host.terms == 2 ? 3 : 2)) return Family::amx;
  if (dot) return Family::dot;
  return B == 1 ? Family::one_row : Family::many_rows;
}

struct Plan {
  int64_t chunk;                         // steps
  int row_parts, unit_parts;             // the threads form a grid over sequences and units
  int64_t unit_vectors, hidden_vectors;  // of `lanes` units, of features of h

  // A cut between threads must fall between tiles, forwards, backwards and of the input projection.
  static constexpr int64_t quantum = 4;

  Range rows(int64_t B, int thread) const { return share(works(thread) ? B : 0, row_parts, thread / unit_parts); }
  Range units(int thread) const { return columns(unit_vectors, thread); }
  Range hidden(int thread) const { return columns(hidden_vectors, thread); }
  // Where a step's rows are worked on as wholes: those of this thread, of its part of the sequences.
  Range whole_rows(int64_t B, int thread) const {
    const Range all = rows(B, thread), own = share(all.end - all.begin, unit_parts, thread % unit_parts);
    return {all.begin + own.begin, all.begin + own.end};
  }
  bool works(int thread) const { return thread < row_parts * unit_parts; }

 private:
  Range columns(int64_t vectors, int thread) const {
    return share(works(thread) ? vectors : 0, unit_parts, thread % unit_parts, quantum);
  }
};

template <class C, class Tiles, class S>
Plan make_plan(const Recurrence<S>& p, const Host& host, const typename Tiles::Engine& engine) {
  // Each chunk adds to dW, which costs memory traffic, and its delta should stay in cache. LSTM's backward of 512 units: 86, 76,
  // 71, 69, 66 ms with 128, 256, 512, 1024, 2048 rows; of 256 units: 222, 201, 190, 190, 188 (Zen 5).
  const int64_t rows_per_chunk = C::gates * p.H * (p.I + p.H) < 1 << 20 ? 512 : Tiles::ChunkEngine::long_chunk;
  Plan plan;
  const int64_t chunk = host.forced.chunk ? host.forced.chunk : ceil_div(rows_per_chunk, p.B > 0 ? p.B : 1);
  plan.chunk = chunk < p.T ? chunk : p.T;
  plan.unit_vectors = ceil_div(p.H, lanes<S>);
  plan.hidden_vectors = ceil_div(p.P, lanes<S>);
  plan.row_parts = plan.unit_parts = 1;
  int64_t weights = engine.packed_size(p.P, plan.unit_vectors * C::recurrent);
  if (C::phases == Phases::two_products) weights += engine.packed_size(p.H, plan.hidden_vectors);
  const int64_t weight_bytes = weights * int64_t(sizeof(typename Tiles::Engine::Weight));
  // One thread takes a step of 16 k multiplications in about the time that a barrier costs.
  const Split forced = host.forced.split;
  if (host.threads == 1 || (forced == Split::free && C::gates * p.H * p.P * p.B < 16384)) return plan;
  const bool fills = p.B >= host.threads * Tiles::Forward::rows && weight_bytes <= host.l2_bytes / 2;
  if (forced == Split::sequences || (forced == Split::free && fills)) {
    plan.row_parts = host.threads;
    return plan;
  }
  const int64_t most = ceil_div(plan.unit_vectors, Plan::quantum);
  plan.unit_parts = int(most < host.threads ? most : host.threads);
  const int64_t rest = host.threads / plan.unit_parts;
  plan.row_parts = int(rest < p.B ? rest : (p.B > 0 ? p.B : 1));
  return plan;
}

}  // namespace throughtime::TT_ISA
