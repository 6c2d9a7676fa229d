// The interface of a cell. Per unit: x, the input part of the pre-activations (G numbers); r, their recurrent part; s, the
// state before; next, the state after; a, the values saved for the backward. V is a number (see number.hpp).
//   forward(x, r, s, next, a)             fills next and a.
//   backward(a, s, next, dn, ds, dx, dr)  dn: gradient of the state after. The cell adds the paths between its states (c
//                                         reaches the loss through h), which makes dn total. Fills ds, the elementwise part
//                                         of the gradient of the state before; dx of x; and dr of r, if dr differs from dx.
// A cell's type declares what else it needs:
//   unit weights   numbers w per unit. forward takes them after s, backward after next; their gradient dw comes last.
//   two products   forward also fills m, its last argument. A product turns m into a second recurrent part, which
//                  finish(x, r, s, next, a) takes and whose gradient is second_product_delta(a, s, dh). backward takes dm after
//                  dn and refills m, its last argument. A cell that projects has no finish: the product is h.
//   whole rows     forward only saves; forward_row and backward_row see all units of a sequence (see layer_norm.hpp).
//   Shared         another cell that computes the same for rows of this cell's variant, so that cells share compiled loops.
#pragma once

#include "../kernels.hpp"
#include "../number.hpp"

namespace throughtime::TT_ISA {

enum class Phases : uint8_t { one, two_products, rows };

// The declarations that most cells share.
struct OnePhase {
  static constexpr Phases phases = Phases::one;
  static constexpr bool projects = false;      // whether h has its own size
  static constexpr bool bias_inside = false;   // whether biases are the first unit weights instead of added to the products
  static constexpr bool biases_apart = false;  // if so, whether b_ih and b_hh are separate weights, b_ih first, or one sum
  static constexpr UnitParameter unit_parameters[max_unit_parameters] = {};
};

template <class C>
concept Cell = requires {
  C::name;       // in the bindings
  C::gates;      // G: pre-activations per unit
  C::recurrent;  // R: the first R gates have a recurrent part that is a product with h
  C::states;     // h, or h and c; h is state 0 and the output
  C::saved;      // values kept per unit
  C::split;      // bool: dr differs from dx
  C::phases;
};

// The number of biases among a unit's weights, and the position of the first one of b_ih or b_hh.
template <class C>
constexpr int bias_values() {
  return C::bias_inside ? (C::biases_apart ? 2 : 1) * int(C::gates) : 0;
}
template <class C>
constexpr int first_value(int bias) {
  return C::biases_apart && bias == bias_hh ? int(C::gates) : 0;
}

// The number of weights per unit.
template <class C>
constexpr int unit_parameter_count() {
  int count = bias_values<C>();
  for (const UnitParameter& weight : C::unit_parameters) count += weight.count;
  return count;
}

template <Cell... C>
struct List {};

}  // namespace throughtime::TT_ISA
