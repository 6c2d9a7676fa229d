// Norms of the gradient carried into a step, for clipping, and of a step's contribution to a weight's gradient.
#pragma once

#include "rules.hpp"

namespace throughtime::TT_ISA {

// A norm from the largest magnitude and the sum of squares of the quotients by it; plain squares may leave the range.
TT_INLINE double norm_of(double largest, double squares) { return largest * __builtin_sqrt(squares); }

// Whether the gradient carried into a step, of this norm, is scaled down to the norm `clip`. At the last step it is the
// gradient of the final state, which belongs to the loss and is not clipped.
template <class S>
TT_INLINE bool clips(const Backward<S>& p, const Steps<S>& steps, int64_t step, int64_t b, int flags, double norm) {
  return norm > p.clip && !(flags & inactive) && !steps.last(step, b);
}

// Whether the norm of d^T x (`rows` rows of m and n numbers) is computed element by element instead of from two Gram matrices:
// if the product is smaller than its factors, or if some of its elements are dropped.
TT_INLINE bool norm_of_elements(int64_t rows, int64_t m, int64_t n, bool dropped) { return dropped || rows * (m + n) > m * n; }

// Squares from Gram matrices may be rounded to below zero. A NaN stays.
TT_INLINE double not_negative(double square) { return square > 0 || square != square ? square : 0.0; }

}  // namespace throughtime::TT_ISA
