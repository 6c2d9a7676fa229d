// Gathers, scatters, converts and sums rows of many sequences and timesteps. Row r of a chunk that begins at timestep t0 is
// sequence r % B at timestep t0 + r / B.
#pragma once

#include "../../step/rules.hpp"
#include "../system/grid.hpp"

namespace throughtime::cuda {

template <class To, class From>
TT_DEVICE void convert(From value, To& to) {
  from_float(to_float(value), to);
}

template <class From, class To>
TT_KERNEL void convert_rows(const From* from, To* to, int64_t columns) {
  const GridPosition at = grid_position(columns);
  if (at.column < columns) convert(from[at.row * columns + at.column], to[at.row * columns + at.column]);
}

template <class From, class To>
void convert_array(int64_t rows, int64_t columns, const From* from, To* to, Stream stream) {
  launch(stream, over(rows, columns), convert_rows<From, To>, from, to, columns);
}

template <class From>
TT_KERNEL void add_to_row(const From* from, float* to, int64_t columns) {
  const GridPosition at = grid_position(columns);
  if (at.column < columns) to[at.column] += to_float(from[at.column]);
}

// Rows of a chunk in an array that is indexed by timestep.
template <class S>
struct ChunkRows {
  Recurrence<S> p;
  int64_t t0, columns;
  int without;  // a row with one of these flags counts as zeros

  TT_DEVICE bool idle(int64_t row) const {
    const Steps<S> steps{p, 0};
    const int64_t t = t0 + row / p.B;
    return without && steps.flags(p.reverse ? p.T - 1 - t : t, row % p.B) & without;
  }
  template <class View>
  TT_DEVICE auto at(const View& of, int64_t row) const {
    return of.data + (t0 + row / p.B) * of.time + row % p.B * of.batch;
  }
};

// Excluded rows become zeros, whatever they hold (padding may be NaN).
template <class S>
TT_KERNEL void gather_rows(ChunkRows<S> of, View<const S> from, S* to) {
  const GridPosition at = grid_position(of.columns);
  if (at.column >= of.columns) return;
  S zero;
  from_float(0.0f, zero);
  to[at.row * of.columns + at.column] = of.idle(at.row) ? zero : of.at(from, at.row)[at.column];
}

template <class S>
TT_KERNEL void scatter_rows(ChunkRows<S> of, const float* from, View<S> to, bool adds) {
  const GridPosition at = grid_position(of.columns);
  if (at.column >= of.columns) return;
  S& target = of.at(to, at.row)[at.column];
  const float part = of.idle(at.row) ? 0.0f : from[at.row * of.columns + at.column];
  from_float(adds ? part + to_float(target) : part, target);
}

// The stride of a view's rows if they are equally spaced, as in a matrix; else 0.
template <class S>
int64_t matrix_stride(const View<S>& of, int64_t B, int64_t columns) {
  const int64_t stride = B == 1 ? of.time : of.batch;
  return stride >= columns && of.time == B * stride ? stride : 0;
}

// Sums columns in two stages: within parts of the rows, then over the parts.
constexpr int rows_of_part = 64, most_parts = 256;

template <class From>
TT_KERNEL void sum_parts(const From* from, float* parts, int64_t rows, int64_t rows_of_one, int64_t columns) {
  const GridPosition at = grid_position(columns);
  if (at.column >= columns) return;
  const int64_t first = at.row * rows_of_one, end = first + rows_of_one < rows ? first + rows_of_one : rows;
  float sum = 0;
  for (int64_t row = first; row < end; ++row) sum += to_float(from[row * columns + at.column]);
  parts[at.row * columns + at.column] = sum;
}

template <class Sum>
TT_KERNEL void sum_of_parts(const Sum* parts, Sum* sums, int64_t count, int64_t columns, bool adds) {
  const GridPosition at = grid_position(columns);
  if (at.column >= columns) return;
  Sum sum = adds ? sums[at.column] : Sum(0);
  for (int64_t part = 0; part < count; ++part) sum += parts[part * columns + at.column];
  sums[at.column] = sum;
}

template <class From>
void sum_columns(int64_t rows, int64_t columns, const From* from, float* sums, bool adds, Stream stream) {
  const int64_t wanted = ceil_div(rows, rows_of_part), one = ceil_div(rows, wanted < most_parts ? wanted : most_parts);
  const int64_t count = ceil_div(rows, one);
  Scratch scratch(stream);
  float* parts = scratch.get<float>(count * columns);
  launch(stream, over(count, columns), sum_parts<From>, from, parts, rows, one, columns);
  launch(stream, over(1, columns), sum_of_parts<float>, parts, sums, count, columns, adds);
}

}  // namespace throughtime::cuda
