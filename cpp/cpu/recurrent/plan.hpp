// How a problem is divided: steps per chunk, and which thread computes which sequences and units. Chunks affect rounding, so
// they depend on sizes and instruction set alone; only the split among threads depends on their number.
#pragma once

#include "../../cells/cell.hpp"
#include "../engine/choice.hpp"
#include "../system/team.hpp"

namespace throughtime::TT_ISA {

struct Plan {
  int64_t chunk;                         // steps
  int row_parts, unit_parts;             // the threads form a grid over sequences and units
  int64_t unit_vectors, hidden_vectors;  // of `lanes` units; of features of h

  // A cut between threads must fall between tiles, in the forward, the backward and the input projection.
  static constexpr int64_t quantum = 4;

  Range rows(int64_t B, int thread) const { return share(works(thread) ? B : 0, row_parts, thread / unit_parts); }
  Range units(int thread) const { return columns(unit_vectors, thread); }
  Range hidden(int thread) const { return columns(hidden_vectors, thread); }
  // For whole-row cells: this thread's share of the sequences of its part.
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
  // Each chunk adds to dW, which costs memory traffic, but its delta should stay in cache. LSTM backward with 512 units: 86,
  // 76, 71, 69, 66 ms for 128, 256, 512, 1024, 2048 rows; with 256 units: 222, 201, 190, 190, 188 (Zen 5).
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
  // One thread runs a step of 16 k multiplications in about the time of a barrier.
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
