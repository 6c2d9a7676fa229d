// How a problem is cut: tile shapes, steps per chunk, and who computes what. Shapes and chunks decide rounding and come from
// sizes and instruction set alone; only the split among threads knows their number.
#pragma once

#include "gemm.hpp"
#include "team.hpp"

namespace throughtime::TT_ISA {

// Tiles of the recurrence: forwards (and where gates are computed again) one holds `units` vectors of units with all their gates,
// backwards some vectors of units. Many sequences: 12 sums fill 16 registers, 24 fill 32.
template <int gates>
struct ManyRows {
  static constexpr int units = gates == 1 ? product_vectors : 1;
  using Forward = Shape<(registers == 32 ? 24 : 12) / (gates * units), gates * units, 1>;
  using Again = Forward;
  using Backward = ProductShape;
};

// One sequence: at least eight sums in flight hide the latency, and narrow tiles leave work for every thread.
template <int gates>
struct OneRow {
  static constexpr int units = gates == 1 ? 4 : 2;
  using Forward = Shape < 1, gates *units, registers == 32 || gates<4 ? 2 : 1>;
  using Again = Shape<registers == 32 ? 3 : 1, gates * units, 1>;  // of many steps, where the states are known
  using Backward = Shape<1, 4, registers == 32 ? 4 : 2>;
};

struct Plan {
  int64_t chunk;              // steps
  int row_parts, unit_parts;  // the threads form a grid over sequences and units
  int64_t unit_vectors;       // of `lanes` units

  // A cut between threads must fall between tiles, forwards, backwards and of the input projection.
  static constexpr int64_t quantum = 4;

  Range rows(int64_t B, int thread) const { return share(works(thread) ? B : 0, row_parts, thread / unit_parts); }
  Range units(int thread) const { return share(works(thread) ? unit_vectors : 0, unit_parts, thread % unit_parts, quantum); }
  bool works(int thread) const { return thread < row_parts * unit_parts; }
};

template <class C, class S>
Plan make_plan(const Recurrence<S>& p, const Host& host) {
  // 512 rows: the LSTM's backward takes 5 to 17 % longer with 256, for adding up dW twice as often, and 1024 gains nothing (Zen
  // 3).
  constexpr int64_t rows_per_chunk = 512;
  Plan plan;
  const int64_t chunk = ceil_div(rows_per_chunk, p.B > 0 ? p.B : 1);
  plan.chunk = chunk < p.T ? chunk : p.T;
  plan.unit_vectors = ceil_div(p.H, lanes<S>);
  plan.row_parts = plan.unit_parts = 1;
  const int64_t weight_bytes = C::gates * p.H * p.H * int64_t(sizeof(S));
  // One thread takes a step of 16 k multiplications in about the time that a barrier costs.
  if (host.threads == 1 || C::gates * p.H * p.H * p.B < 16384) return plan;
  if (p.B >= host.threads * ManyRows<C::gates>::Forward::rows && weight_bytes <= host.l2_bytes / 2) {
    plan.row_parts = host.threads;
    return plan;
  }
  const int64_t most = ceil_div(plan.unit_vectors, Plan::quantum);
  plan.unit_parts = int(most < host.threads ? most : host.threads);
  const int64_t rest = host.threads / plan.unit_parts;
  plan.row_parts = int(rest < p.B ? rest : (p.B > 0 ? p.B : 1));
  return plan;
}

// Scratch of one call, cut from what the host lends.
template <class T>
T* scratch(const Host& host, int64_t count) {
  return static_cast<T*>(host.allocate(host.context, size_t(count) * sizeof(T)));
}

}  // namespace throughtime::TT_ISA
