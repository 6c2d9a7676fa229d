// Losses and their gradients, in float64 and in one pass over memory:
//   cross entropy of a row x with target c: log(sum_j exp(x_j - m)) - (x_c - m), m the largest of x;
//     d_j = (softmax(x)_j - [j = c]) / kept
//   squared error: sum (x - y)^2;  d = 2 (x - y) / N
#pragma once

#include "../../math.hpp"
#include "blocks.hpp"
#include "rows.hpp"

namespace throughtime::TT_ISA {

// Replaces a row, padded to whole registers, by exp(x - m); returns the sum, which is NaN if a number is NaN or m is infinite.
TT_INLINE double exponentials(double* row, int64_t length, double m) {
  using V = Vec<double>;
  V sums[4] = {};
  for_registers<double>(length, [&](int64_t j, int64_t, int u) {
    const V e = exp(load<V>(row + j) - m);
    store(row + j, e);
    sums[u] += e;
  });
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

TT_INLINE double largest_of(const double* row, int64_t length) {
  using V = Vec<double>;
  const V least = splat<V>(-__builtin_inf());
  V found[4] = {least, least, least, least};
  for_registers<double>(length, [&](int64_t j, int64_t, int u) {
    const V x = load<V>(row + j);
    found[u] = found[u] < x ? x : found[u];
  });
  for (int u = 1; u < 4; ++u) found[0] = found[0] < found[u] ? found[u] : found[0];
  return largest_lane(found[0]);
}

// Returns the loss of one row and writes its gradient. `row` is room for the logits in float64, in whole registers.
template <class S>
double cross_entropy_row(const S* logits, int64_t target, const CrossEntropy<S>& p, double* row, S* d_logits) {
  const int64_t length = ceil_div(p.C, lanes<double>) * lanes<double>;
  for (int64_t j = 0; j < p.C; ++j) row[j] = double(logits[j]);
  for (int64_t j = p.C; j < length; ++j) row[j] = -__builtin_inf();
  const double m = largest_of(row, length), at_target = row[target] - m;
  const double sum = exponentials(row, length, m), scale = 1 / (sum * double(p.kept));
  for (int64_t j = 0; j < p.C; ++j) d_logits[j] = S(row[j] * scale);
  d_logits[target] = S(row[target] * scale - 1 / double(p.kept));
  return __builtin_log(sum) - at_target;
}

template <class S>
void cross_entropy(const CrossEntropy<S>& p, const Host& host) {
  const int64_t rows = rows_per_block(p.N), blocks = ceil_div(p.N, rows);
  const int64_t stride = ceil_div(p.C, 8) * 8;
  double* const row = scratch<double>(host, stride * host.threads);
  double* const sums = scratch<double>(host, blocks);
  // A logit takes 2.5 ns, mostly for its exponential (AMD EPYC with AVX2); waking a thread pays from 20 us on.
  for_blocks_until_stopped(blocks, p.N * p.C < 1 << 13, host, [&](int64_t block, int thread) {
    double sum = 0;
    for (int64_t n = block * rows; n < p.N && n < (block + 1) * rows; ++n) {
      S* const d = p.d_logits + n * p.C;
      if (p.targets[n] != p.ignore_index) sum += cross_entropy_row(p.logits + n * p.C, p.targets[n], p, row + thread * stride, d);
      else
        for (int64_t j = 0; j < p.C; ++j) d[j] = 0;
    }
    sums[block] = sum;
  });
  *p.total = sum_blocks(sums, blocks);
}

template <class S>
void squared_error(const SquaredError<S>& p, const Host& host) {
  using V = Vec<S>;
  const double scale = 2 / double(p.N);
  const int64_t blocks = ceil_div(p.N, segment_size);
  double* const sums = scratch<double>(host, blocks);
  for_blocks_until_stopped(blocks, p.N < 1 << 15, host, [&](int64_t block, int) {
    const int64_t begin = block * segment_size, size = p.N - begin < segment_size ? p.N - begin : segment_size;
    Vec<double> squares[4] = {};
    for_registers<S>(size, [&](int64_t j, int64_t count, int u) {
      Vec<double> x[halves<S>], y[halves<S>];
      widen(load_some<V>(p.prediction + begin + j, count), x);
      widen(load_some<V>(p.target + begin + j, count), y);
      for (int h = 0; h < halves<S>; ++h) {
        const Vec<double> difference = x[h] - y[h];
        squares[u] += difference * difference;
        x[h] = difference * scale;
      }
      store_some(p.d_prediction + begin + j, narrow(x), count);
    });
    sums[block] = sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
  });
  *p.total = sum_blocks(sums, blocks);
}

}  // namespace throughtime::TT_ISA
