// Every cell, scalar type and tile shape for one instruction set. Compiled once per level; TT_ISA is its name.
#include "../../kernels.hpp"

#include "../../cells/cells.hpp"
#include "../engine/peak.hpp"
#include "backward.hpp"
#include "forward.hpp"

namespace throughtime::TT_ISA {

template <template <class, class, class> class Loop, class C, class S, class Problem>
void run_loop(const Problem& problem, const Host& host) {
  const EngineKind kind = choose_engine<S>(problem.B, C::gates * problem.H, host);
#if defined(__AMX_BF16__)
  if constexpr (sizeof(S) == sizeof(float)) {
    if (kind == EngineKind::amx)
      return problem.B > tile_rows ? Loop<C, S, AmxRows<S, C::recurrent, 2>>::run(problem, host)
                                   : Loop<C, S, AmxRows<S, C::recurrent, 4>>::run(problem, host);
    if (kind != EngineKind::avx512_bf16 && chunks_fill_tiles<C>(problem))
      return kind == EngineKind::one_row ? Loop<C, S, ChunksOnTiles<OneRow, S, C::recurrent>>::run(problem, host)
                                         : Loop<C, S, ChunksOnTiles<ManyRows, S, C::recurrent>>::run(problem, host);
  }
#endif
  if constexpr (has_avx512_bf16 && sizeof(S) == sizeof(float))
    if (kind == EngineKind::avx512_bf16) return Loop<C, S, Avx512Bf16Rows<S, C::recurrent>>::run(problem, host);
  if (kind == EngineKind::one_row) Loop<C, S, OneRow<S, C::recurrent>>::run(problem, host);
  else Loop<C, S, ManyRows<S, C::recurrent>>::run(problem, host);
}

template <class C>
concept SharesLoops = requires { typename C::Shared; };

template <template <class, class, class> class Loop, class C, class S, class Problem>
void run(const Problem& problem, const Host& host) {
  if constexpr (SharesLoops<C>) {
    Problem of_variant = problem;
    of_variant.variant = C::variant;
    return run<Loop, typename C::Shared, S>(of_variant, host);
  } else {
    run_loop<Loop, C, S>(problem, host);
  }
}

template <class C, class S>
constexpr Entries<S> entries = {run<ForwardLoop, C, S, Forward<S>>, run<BackwardLoop, C, S, Backward<S>>};

extern const AttentionKernels attention;
extern const LayerNormKernels layer_norm;
extern const ActivationKernels activations[];
extern const TrainingKernels training;
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
