// Pointwise work on the N rows of a matrix, F features each: blocks of rows, the registers of a row, and sums over rows. Sums
// are bit-identical for any number of threads: blocks and the order of their addition depend on N alone.
#pragma once

#include "../engine/pack.hpp"
#include "../system/team.hpp"

namespace throughtime::TT_ISA {

// Calls body(j, count, u) for every register of a row: `count` features from j on; u goes from 0 to 3, for independent sums.
template <class S, class Body>
TT_INLINE void for_registers(int64_t F, const Body& body) {
  constexpr int64_t W = lanes<S>;
  int64_t j = 0;
  for (; j + 4 * W <= F; j += 4 * W) {
    body(j, W, 0);
    body(j + W, W, 1);
    body(j + 2 * W, W, 2);
    body(j + 3 * W, W, 3);
  }
  for (; j + W <= F; j += W) body(j, W, 0);
  if (j < F) body(j, F - j, 1);
}

// Whether results of N rows bypass the cache: if they would not stay in it, and their registers are aligned. Residual add and
// LayerNorm of 512 floats, bypassing and not (Zen 5, 32 MB of L3): 0.50 and 0.45 ms for 4000 rows, 0.98 and 1.11 for 8000, 4.4
// and 6.0 for 32000.
template <class S, class... Result>
bool streams(int64_t N, int64_t F, Result*... to) {
  return F % lanes<S> == 0 && N * F * int64_t(sizeof(S)) >= 16 << 20 && ((uintptr_t(to) % vector_bytes == 0) && ...);
}

template <bool streamed, class V, class S>
TT_INLINE void put(S* to, V value, int64_t count) {
  if (streamed) stream(to, value);
  else store_some(to, value, count);
}

// Rows per block, for at most 128 blocks.
inline int64_t rows_per_block(int64_t N) { return N > 16 * 128 ? ceil_div(N, 128) : 16; }

// Blocks of rows; a free thread claims the next one.
class RowBlocks {
 public:
  // A small problem runs on one thread: it is done before another is awake.
  RowBlocks(int64_t N, int64_t F, const Host& host) : RowBlocks(N, rows_per_block(N), N * F < 1 << 15, host) {}
  // Blocks of `size` rows; `alone`: on one thread.
  RowBlocks(int64_t N, int64_t size, bool alone, const Host& host)
      : N_(N), size_(size), host_(host), alone_(alone), team_(host) {}

  int64_t count() const { return ceil_div(N_, size_); }
  bool alone() const { return alone_; }

  // Runs work(thread) on thread 0, and on others as they arrive.
  template <class Work>
  void run(const Work& work) {
    const auto body = [](void* self, int thread) {
      const FlushSubnormals flush;
      (*static_cast<const Work*>(self))(thread);
    };
    void* const argument = const_cast<Work*>(&work);
    if (alone_) body(argument, 0);
    else host_.run(host_.context, body, argument);
  }

  Poll poll(int thread) { return {team_, thread}; }

  // Calls body(block, rows) until every block is claimed; false if the call must stop.
  template <class Body>
  bool for_each(int thread, const Body& body) {
    for (;;) {
      const int64_t block = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
      if (block >= count()) return !team_.stopped();
      if (team_.interrupted(thread)) return false;
      const int64_t begin = block * size_, end = begin + size_;
      body(block, Range{begin, end < N_ ? end : N_});
    }
  }

 private:
  const int64_t N_, size_;
  const Host& host_;
  const bool alone_;
  Team team_;
  alignas(64) int64_t next_ = 0;
};

// Sums over all rows: of a few rows in S, of a block in float64, then the blocks in order.
template <class S>
class ColumnSums {
 public:
  ColumnSums(int64_t columns, const RowBlocks& blocks, const Host& host)
      : columns_(columns),
        blocks_(blocks),
        host_(host),
        few_(scratch<S>(host, columns * host.threads)),
        sums_(scratch<double>(host, columns * blocks.count())) {}

  // Sums a block's rows: add(r, sums) adds row r to the columns.
  template <class Add>
  void sum_block(int thread, int64_t block, Range rows, const Add& add) {
    S* const few = few_ + thread * columns_;
    double* const sums = sums_ + block * columns_;
    for (int64_t j = 0; j < columns_; ++j) sums[j] = 0;
    for (int64_t r = rows.begin; r < rows.end;) {
      for (int64_t j = 0; j < columns_; ++j) few[j] = 0;
      for (const int64_t end = r + 16 < rows.end ? r + 16 : rows.end; r < end; ++r) add(r, few);
      for (int64_t j = 0; j < columns_; ++j) sums[j] += double(few[j]);
    }
  }

  // Calls put(j, sum) for every column, when all blocks are done.
  template <class Put>
  void total(const Put& put) const {
    RowBlocks groups(columns_, width, blocks_.alone(), host_);
    groups.run([&](int thread) { groups.for_each(thread, [&](int64_t, Range columns) { total(columns, put); }); });
  }

 private:
  static constexpr int64_t width = 64;

  template <class Put>
  void total(Range columns, const Put& put) const {
    double totals[width] = {};
    const int64_t count = columns.end - columns.begin;
    for (int64_t block = 0; block < blocks_.count(); ++block)
      for (int64_t i = 0; i < count; ++i) totals[i] += sums_[block * columns_ + columns.begin + i];
    for (int64_t i = 0; i < count; ++i) put(columns.begin + i, totals[i]);
  }

  const int64_t columns_;
  const RowBlocks& blocks_;
  const Host& host_;
  S* const few_;
  double* const sums_;
};

}  // namespace throughtime::TT_ISA
