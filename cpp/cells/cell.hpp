// What a cell is. Per unit: x, the input part of the pre-activations (G numbers); r, their recurrent part (G); s, the state
// before; next, the state after; a, the values saved for the backward. V is a number (see number.hpp).
//   forward(x, r, s, next, a)             fills next and a.
//   backward(a, s, next, dn, ds, dx, dr)  dn: gradient of the state after; the cell adds its own paths among the states
//                                         (c reaches the loss through h), which makes it total. Fills ds, the elementwise part of
//                                         the gradient of the state before, dx of x, and dr of r where it differs from dx.
#pragma once

namespace throughtime::TT_ISA {

template <class C>
concept Cell = requires {
  C::name;    // as the bindings call it
  C::gates;   // G: pre-activations per unit
  C::states;  // h, or h and c; h is state 0 and the output
  C::saved;   // values kept per unit
  C::split;   // bool: dr differs from dx
};

template <Cell... C>
struct List {};

}  // namespace throughtime::TT_ISA
