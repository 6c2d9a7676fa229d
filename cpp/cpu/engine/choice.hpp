// The engine and the tile shapes of a problem. Shapes affect rounding, so they depend on sizes and instruction set alone.
#pragma once

#include "../../kernels.hpp"
#if defined(__AMX_BF16__)
#include "amx.hpp"
#endif
#include "avx512_bf16.hpp"
#include "gemm.hpp"

namespace throughtime::TT_ISA {

// Tiles for many sequences: 12 sums fill 16 registers, 24 fill 32. A forward (or recomputing) tile of the recurrence holds
// `units` vectors of units with all their gates, a backward tile some vectors of units. Product is for products outside it.
template <class S, int gates>
struct ManyRows {
  static constexpr bool halves = false;  // whether a step's sums have two halves, one of which can start before a barrier
  template <int of_gates>
  using With = ManyRows<S, of_gates>;
  using Engine = Fma<S>;       // of the recurrence
  using ChunkEngine = Engine;  // of the products outside it
  static constexpr int units = gates <= ProductShape::vectors ? ProductShape::vectors / gates : 1;
  using Forward = Shape<(registers == 32 ? 24 : 12) / (gates * units), gates * units, 1>;
  using Recompute = Forward;
  using Backward = ProductShape;
  using Product = ProductShape;
};

// Tiles for one sequence: at least eight sums in flight hide the latency, and narrow tiles leave work for every thread.
template <class S, int gates>
struct OneRow {
  static constexpr bool halves = true;
  template <int of_gates>
  using With = OneRow<S, of_gates>;
  using Engine = Fma<S>;
  using ChunkEngine = Engine;
  static constexpr int units = gates == 1 ? 4 : 2;
  using Forward = Shape < 1, gates *units, registers == 32 || gates<4 ? 2 : 1>;
  using Recompute = Shape<registers == 32 ? 3 : 1, gates * units, 1>;  // for many steps, whose states are known
  using Backward = Shape<1, 4, registers == 32 ? 4 : 2>;
  using Product = ProductShape;
};

// Tiles for AVX512_BF16, for one sequence or many.
template <class S, int gates>
struct Avx512Bf16Rows : ManyRows<S, gates> {
  template <int of_gates>
  using With = Avx512Bf16Rows<S, of_gates>;
  using Engine = Avx512Bf16;
  using ChunkEngine = Engine;
};

#if defined(__AMX_BF16__)
constexpr bool has_amx = true;

// Tiles for AMX: blocks of 32 x 2, or 16 x 4 for up to 16 rows, so the number of vectors is even. In the backward, narrow
// panels leave less of the cell's work until after the last product.
template <class S, int gates, int back = 4>
struct AmxRows {
  static constexpr bool halves = false;
  template <int of_gates>
  using With = AmxRows<S, of_gates, back>;
  using Engine = Amx;
  using ChunkEngine = Engine;
  static constexpr int units = gates == 1 ? 4 : gates < 4 ? 2 : 1;
  using Forward = Shape<32, gates * units, 1>;
  using Recompute = Forward;
  using Backward = Shape<32, back, 1>;
  using Product = Shape<32, 2, 1>;
};

// For too few sequences to fill tiles: the recurrence runs on vector registers, a chunk's products on tiles.
template <class C, class S>
bool chunks_fill_tiles(const Recurrence<S>& p) {
  return p.T * p.B >= 4 * tile_rows && C::gates * p.H >= 256 && p.I + p.P >= 64;  // smaller sizes were not measured
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

// The engine for B sequences. Sapphire Rapids: six, three and one bfloat16 products on AMX beat one of floats from 8, 3 and 2
// rows on; with few gates, six do from 16 on. Zen 5: one on vector registers always does.
template <class S>
EngineKind choose_engine(int64_t B, int64_t gate_rows, const Host& host) {
  constexpr bool single = sizeof(S) == sizeof(float), amx = has_amx && single;
  const bool by_avx512 = has_avx512_bf16 && single && host.avx512_bf16 && host.terms == 1;
  const EngineKind forced = host.forced.engine;
  if (forced == EngineKind::amx ? amx : forced != EngineKind::free) return forced;
  if (amx && B >= (host.terms == 3 ? (gate_rows < 256 ? 16 : 8) : host.terms == 2 ? 3 : 2)) return EngineKind::amx;
  if (by_avx512) return EngineKind::avx512_bf16;
  return B == 1 ? EngineKind::one_row : EngineKind::many_rows;
}

}  // namespace throughtime::TT_ISA
