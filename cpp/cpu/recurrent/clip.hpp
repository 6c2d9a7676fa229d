// The norm of each sequence's carried gradient, in float64, for clipping (step/norms.hpp).
#pragma once

#include "../../step/norms.hpp"
#include "plan.hpp"

namespace throughtime::TT_ISA {

template <class S, int states>
class CarriedNorms {
  static constexpr int W = lanes<S>;

 public:
  void prepare(const Host& host, int64_t B, int64_t hidden_vectors, int64_t unit_vectors) {
    for (int i = 0; i < states; ++i) {
      vectors[i] = i == 0 ? hidden_vectors : unit_vectors;
      sizes[i] = scratch<Size>(host, B * vectors[i]);
    }
  }

  // Records the size of vector j of state i of sequence b.
  void observe(int i, int64_t b, int64_t j, const S* values) const {
    Size& size = sizes[i][b * vectors[i] + j];
    size = {0, 0};
    for (int lane = 0; lane < W; ++lane) {
      const double value = __builtin_fabs(double(values[lane]));
      size.largest = value > size.largest ? value : size.largest;
    }
    for (int lane = 0; lane < W && size.largest > 0; ++lane) {
      const double part = double(values[lane]) / size.largest;
      size.squares += part * part;
    }
  }

  double norm(int64_t b) const {
    Size all{0, 0};
    const auto for_parts = [&](const auto& take) {
      for (int i = 0; i < states; ++i)
        for (int64_t j = 0; j < vectors[i]; ++j) take(sizes[i][b * vectors[i] + j]);
    };
    for_parts([&](const Size& size) { all.largest = size.largest > all.largest ? size.largest : all.largest; });
    for_parts([&](const Size& size) {
      const double part = all.largest > 0 ? size.largest / all.largest : 0;
      all.squares += size.squares * part * part;
    });
    return norm_of(all.largest, all.squares);
  }

 private:
  struct Size {
    double largest, squares;
  };
  Size* sizes[states];  // (B, vectors)
  int64_t vectors[states];
};

}  // namespace throughtime::TT_ISA
