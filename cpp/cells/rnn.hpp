// h' = f(x + r), f = tanh, relu or sigmoid (Elman 1990)
#pragma once

#include "../activations.hpp"
#include "cell.hpp"

namespace throughtime::TT_ISA {

template <class Activation>
struct RNN : OnePhase {
  static constexpr const char* name = Activation::cell;
  enum Gate { A, gates };
  enum State { H, states };
  static constexpr int recurrent = gates, saved = 0;  // the backward needs only the state after
  static constexpr bool split = false;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V*, V* next, V*) {
    next[H] = Activation::value(x[A] + r[A]);
  }
  template <class V>
  TT_INLINE static void backward(const V*, const V*, const V* next, V* dn, V* ds, V* dx, V*) {
    dx[A] = Activation::gradient(next[H], dn[H]);
    ds[H] = V{};
  }
};

// The same with zoneout, under which the state after may differ from h'; so h' is saved.
template <class Activation>
struct ZoneoutRNN : RNN<Activation> {
  using RNN<Activation>::A, RNN<Activation>::H;
  static constexpr const char* name = Activation::kept_cell;
  static constexpr int saved = 1;

  template <class V>
  TT_INLINE static void forward(const V* x, const V* r, const V* s, V* next, V* a) {
    RNN<Activation>::forward(x, r, s, next, a);
    a[0] = next[H];
  }
  template <class V>
  TT_INLINE static void backward(const V* a, const V* s, const V*, V* dn, V* ds, V* dx, V* dr) {
    RNN<Activation>::backward(a, s, a, dn, ds, dx, dr);
  }
};

}  // namespace throughtime::TT_ISA
