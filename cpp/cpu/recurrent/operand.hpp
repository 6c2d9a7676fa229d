// A left operand produced by the loop, vector by vector. The FMA engine keeps it as rows; the others split it into bfloat16
// terms on the fly, and keep rows too if `readable`.
#pragma once

#include "plan.hpp"

namespace throughtime::TT_ISA {

template <class S, class Engine>
class Operand {
  using V = Vec<S>;
  using Rows = typename Engine::Rows;

 public:
  Operand() = default;
  Operand(const Engine& engine, const Host& host, int64_t rows, int64_t size, bool readable) : size_(size) {
    if (!Engine::copies_operands || readable) data_ = scratch<S>(host, rows * size);
    if constexpr (Engine::copies_operands) {
      split_ = engine.rows(scratch<typename Engine::Weight>(host, engine.row_buffer_size(rows, size)), rows, size);
      if (Engine::columns_padded(size) > size)  // pads the tile's depth with zeros
        for (int64_t row = 0; row < rows; ++row) split_.put(row, size, V{});
    }
  }

  TT_INLINE void put(int64_t row, int64_t k, V value) const {
    if (!Engine::copies_operands || data_) store(data_ + row * size_ + k, value);
    if constexpr (Engine::copies_operands) split_.put(row, k, value);
  }

  // The rows in `range`, counted from row `first`; `row_buffer` holds one pointer per row.
  template <class RowBuffer>
  Rows rows(int64_t first, Range range, RowBuffer* row_buffer) const {
    if constexpr (Engine::copies_operands) {
      return split_.from(first);
    } else {
      for (int64_t r = range.begin; r < range.end; ++r) row_buffer[r] = row(first + r);
      return {row_buffer};
    }
  }

  const S* row(int64_t r) const { return data_ + r * size_; }
  const Rows& split() const { return split_; }

 private:
  S* data_ = nullptr;
  int64_t size_ = 0;  // a multiple of the lanes
  Rows split_;
};

}  // namespace throughtime::TT_ISA
