// Every cell, scalar type and tile shape for one instruction set. Compiled once per level; TT_ISA is its name. If TT_REST names
// another level, that one's kernels serve whatever needs no tiles, and are not compiled again.
#include "../../kernels.hpp"

#include "../../cells/cells.hpp"
#include "../engine/peak.hpp"
#include "backward.hpp"
#include "forward.hpp"

#if defined(TT_REST)
namespace throughtime::TT_REST {
extern const Kernels* const kernels;
extern const AttentionKernels attention;
extern const LayerNormKernels layer_norm;
extern const ActivationKernels activations[];
extern const TrainingKernels training;
}  // namespace throughtime::TT_REST
#endif

namespace throughtime::TT_ISA {

template <template <class, class, class> class Loop, class C, class S, class Problem>
void run_on_vectors(const Problem& problem, const Host& host, EngineKind kind) {
  if constexpr (has_avx512_bf16 && sizeof(S) == sizeof(float))
    if (kind == EngineKind::avx512_bf16) return Loop<C, S, Avx512Bf16Rows<S, C::recurrent>>::run(problem, host);
  if (kind == EngineKind::one_row) Loop<C, S, OneRow<S, C::recurrent>>::run(problem, host);
  else Loop<C, S, ManyRows<S, C::recurrent>>::run(problem, host);
}

#if defined(__AMX_BF16__)
// False if the call needs no tiles; then it has not run.
template <template <class, class, class> class Loop, class C, class S, class Problem>
bool run_on_tiles(const Problem& problem, const Host& host, EngineKind kind) {
  if constexpr (sizeof(S) == sizeof(float)) {
    if (kind == EngineKind::amx) {
      if (problem.B > tile_rows) Loop<C, S, AmxRows<S, C::recurrent, 2>>::run(problem, host);
      else Loop<C, S, AmxRows<S, C::recurrent, 4>>::run(problem, host);
      return true;
    }
    if (kind != EngineKind::avx512_bf16 && chunks_fill_tiles<C>(problem)) {
      if (kind == EngineKind::one_row) Loop<C, S, ChunksOnTiles<OneRow, S, C::recurrent>>::run(problem, host);
      else Loop<C, S, ChunksOnTiles<ManyRows, S, C::recurrent>>::run(problem, host);
      return true;
    }
  }
  return false;
}
#endif

#if defined(TT_REST)
template <class C, class First, class... More>
constexpr int position(List<First, More...>) {
  if constexpr (__is_same(C, First)) return 0;
  else return 1 + position<C>(List<More...>{});
}

template <class S>
void run_entry(const Entries<S>& cell, const Forward<S>& problem, const Host& host) {
  cell.forward(problem, host);
}
template <class S>
void run_entry(const Entries<S>& cell, const Backward<S>& problem, const Host& host) {
  cell.backward(problem, host);
}
#endif

// Runs cell C in the loops of `Own`, which is C or the cell that shares them.
template <template <class, class, class> class Loop, class C, class Own, class S, class Problem>
void run_loops(const Problem& problem, const Host& host) {
  const EngineKind kind = choose_engine<S>(problem.B, C::gates * problem.H, host);
#if defined(__AMX_BF16__)
  if (run_on_tiles<Loop, Own, S>(problem, host, kind)) return;
#endif
#if defined(TT_REST)
  const CellKernels& cell = TT_REST::kernels->cells[position<C>(Cells{})];
  if constexpr (sizeof(S) == sizeof(float)) run_entry(cell.f32, problem, host);
  else run_entry(cell.f64, problem, host);
#else
  run_on_vectors<Loop, Own, S>(problem, host, kind);
#endif
}

template <class C>
concept SharesLoops = requires { typename C::Shared; };

template <template <class, class, class> class Loop, class C, class S, class Problem>
void run(const Problem& problem, const Host& host) {
  if constexpr (SharesLoops<C>) {
    Problem of_variant = problem;
    of_variant.variant = C::variant;
    run_loops<Loop, C, typename C::Shared, S>(of_variant, host);
  } else {
    run_loops<Loop, C, C, S>(problem, host);
  }
}

template <class C, class S>
constexpr Entries<S> entries = {run<ForwardLoop, C, S, Forward<S>>, run<BackwardLoop, C, S, Backward<S>>};

#if defined(TT_REST)
using TT_REST::activations, TT_REST::attention, TT_REST::layer_norm, TT_REST::training;
#else
extern const AttentionKernels attention;
extern const LayerNormKernels layer_norm;
extern const ActivationKernels activations[];
extern const TrainingKernels training;
#endif
extern const LinearKernels linear;

template <class... C>
struct Table {
  static constexpr CellKernels describe(const char* name, int gates, int states, int saved, bool projects, bool whole_rows,
                                        const UnitParameter (&weights)[max_unit_parameters], Entries<float> f32,
                                        Entries<double> f64) {
    CellKernels cell{name, gates, states, saved, projects, whole_rows, {}, f32, f64};
    for (int i = 0; i < max_unit_parameters; ++i) cell.unit_parameters[i] = weights[i];
    return cell;
  }
  static constexpr CellKernels cells[] = {describe(C::name, C::gates, C::states, C::saved, C::projects, C::phases == Phases::rows,
                                                   C::unit_parameters, entries<C, float>, entries<C, double>)...};
  static constexpr Kernels kernels = {vector_bytes, has_amx,     has_avx512_bf16, sizeof...(C), cells,  multiply_add,
                                      &attention,   &layer_norm, activations,     &training,    &linear};
};

template <class... C>
constexpr const Kernels* table(List<C...>) {
  return &Table<C...>::kernels;
}

extern const Kernels* const kernels;
const Kernels* const kernels = table(Cells{});

}  // namespace throughtime::TT_ISA
