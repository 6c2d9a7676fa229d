// Linear layers for one instruction set. Compiled once per level; TT_ISA is its name.
#include "linear.hpp"

namespace throughtime::TT_ISA {

// Calls run with the tiles for N rows and O outputs.
template <class S, class Run>
void with_tiles(int64_t N, int64_t O, const Host& host, const Run& run) {
  const EngineKind kind = choose_engine<S>(N, O, host);
#if defined(__AMX_BF16__)
  if constexpr (sizeof(S) == sizeof(float))
    if (kind == EngineKind::amx) return run(AmxRows<S, 1>{});
#endif
  if constexpr (has_avx512_bf16 && sizeof(S) == sizeof(float))
    if (kind == EngineKind::avx512_bf16) return run(Avx512Bf16Rows<S, 1>{});
  run(ManyRows<S, 1>{});
}

template <class S>
void forward(const LinearForward<S>& p, const Host& host) {
  with_tiles<S>(p.N, p.O, host, [&](auto tiles) { linear_forward<S, decltype(tiles)>(p, host); });
}

template <class S>
void backward(const LinearBackward<S>& p, const Host& host) {
  with_tiles<S>(p.N, p.O, host, [&](auto tiles) { linear_backward<S, decltype(tiles)>(p, host); });
}

template <class S>
constexpr LinearEntries<S> linear_entries = {forward<S>, backward<S>};

extern const LinearKernels linear;
const LinearKernels linear = {linear_entries<float>, linear_entries<double>};

}  // namespace throughtime::TT_ISA
