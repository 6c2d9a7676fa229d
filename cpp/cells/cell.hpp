// What a cell is. Per unit: x, the input part of the pre-activations (G numbers); r, their recurrent part; s, the state before;
// next, the state after; a, the values saved for the backward. V is a number (see number.hpp).
//   forward(x, r, s, next, a)             fills next and a.
//   backward(a, s, next, dn, ds, dx, dr)  dn: gradient of the state after; the cell adds its own paths among the states
//                                         (c reaches the loss through h), which makes it total. Fills ds, the elementwise part of
//                                         the gradient of the state before, dx of x, and dr of r where it differs from dx.
// A cell says in its type what else it needs:
//   unit weights   numbers w that each unit has for itself: forward takes them after s, backward after next, and their gradient
//   dw
//                  comes last.
//   two products   forward ends with m, which a product turns into a second recurrent part; finish(x, r, s, next, a) takes that,
//                  second_product_delta(a, s, dh) is its gradient, and backward, given dm after dn, fills m again after all
//                  others. A cell that projects has no finish: the product itself is h.
//   whole rows     forward only saves; forward_row and backward_row see all units of a sequence (see layer_norm.hpp).
//   Shared         another cell that does the same where the row's variant is this one's, so that cells share compiled loops.
#pragma once

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

enum class Phases : uint8_t { one, two_products, rows };

// What most cells are.
struct OnePhase {
  static constexpr Phases phases = Phases::one;
  static constexpr bool projects = false;      // whether h has a size of its own
  static constexpr bool bias_inside = false;   // whether biases are unit weights, the first ones, and not added to the products
  static constexpr bool biases_apart = false;  // if so, whether b_ih comes before b_hh, or one sum stands for both
  static constexpr UnitParameter unit_parameters[max_unit_parameters] = {};
};

template <class C>
concept Cell = requires {
  C::name;       // as the bindings call it
  C::gates;      // G: pre-activations per unit
  C::recurrent;  // of these the first so many have a recurrent part that is a product with h
  C::states;     // h, or h and c; h is state 0 and the output
  C::saved;      // values kept per unit
  C::split;      // bool: dr differs from dx
  C::phases;
};

// How many numbers of each unit are biases, and the first one of b_ih or b_hh.
template <class C>
constexpr int bias_values() {
  return C::bias_inside ? (C::biases_apart ? 2 : 1) * int(C::gates) : 0;
}
template <class C>
constexpr int first_value(int bias) {
  return C::biases_apart && bias == bias_hh ? int(C::gates) : 0;
}

// How many numbers each unit has for itself.
template <class C>
constexpr int unit_parameter_count() {
  int count = bias_values<C>();
  for (const UnitParameter& weight : C::unit_parameters) count += weight.count;
  return count;
}

template <Cell... C>
struct List {};

}  // namespace throughtime::TT_ISA
