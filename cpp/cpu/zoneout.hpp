// Zoneout (Krueger et al. 2017): a unit keeps its old state where a mask says so; without masks, the expectation of that.
#pragma once

#include "vec.hpp"

namespace throughtime::TT_ISA {

template <class S>
struct Zoneout {
  using V = Vec<S>;
  const Recurrence<S>& p;

  bool any(int i) const { return p.zoneout_mask[i] || p.zoneout[i] > 0; }

  // The part of the old state i of units j in the new one.
  TT_INLINE V part(int i, int64_t t, int64_t b, int64_t j) const {
    if (!p.zoneout_mask[i]) return splat<V>(S(p.zoneout[i]));
    constexpr int L = lanes<S>;
    typedef uint8_t Bytes __attribute__((vector_size(L)));
    const int64_t width = i == 0 ? p.P : p.H, n = width - j * L;
    const uint8_t* from = p.zoneout_mask[i] + (t * p.B + b) * width + j * L;
    uint8_t some[L] = {};
    for (int64_t lane = 0; n < L && lane < n; ++lane) some[lane] = from[lane];
    Bytes bytes;
    __builtin_memcpy(&bytes, n < L ? some : from, sizeof bytes);
    return __builtin_convertvector(bytes, V);
  }

  // Chosen, not multiplied, where the part is 0 or 1.
  TT_INLINE static V mix(V part, V old, V next) {
    const V mixed = part * old + (1 - part) * next;
    return part > 0 ? (part < 1 ? mixed : old) : next;
  }
};

}  // namespace throughtime::TT_ISA
