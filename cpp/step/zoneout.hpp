// Zoneout (Krueger et al. 2017): a unit keeps its old state if the mask is true; without masks, the expectation of that.
#pragma once

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

template <class S>
struct Zoneout {
  const Recurrence<S>& p;

  TT_INLINE bool any(int i) const { return p.zoneout_mask[i] || p.zoneout[i] > 0; }

  // The fraction of the old state i that the new one keeps, for the units from u on. load(bytes, count) converts the mask.
  template <class V, class Load>
  TT_INLINE V fraction(int i, int64_t t, int64_t b, int64_t u, const Load& load) const {
    if (!p.zoneout_mask[i]) return splat<V>(Scalar<V>(p.zoneout[i]));
    const int64_t width = i == 0 ? p.P : p.H;
    return load(p.zoneout_mask[i] + (t * p.B + b) * width + u, width - u);
  }
};

// The state after: selected, not multiplied, if the fraction is 0 or 1.
template <class V>
TT_INLINE V mix(V fraction, V old, V next) {
  const V mixed = fraction * old + (1 - fraction) * next;
  return fraction > 0 ? (fraction < 1 ? mixed : old) : next;
}

}  // namespace throughtime::TT_ISA
