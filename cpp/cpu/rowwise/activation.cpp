// Activations for one instruction set. Compiled once per level; TT_ISA is its name.
#include "activation.hpp"

#include "../../activations.hpp"

namespace throughtime::TT_ISA {

template <class F, class S>
constexpr ActivationEntries<S> activation_entries = {activation_forward<F, S>, activation_backward<F, S>};

template <class F>
constexpr ActivationKernels activation_kernels = {F::name, F::of_argument, activation_entries<F, float>,
                                                  activation_entries<F, double>};

extern const ActivationKernels activations[];
const ActivationKernels activations[] = {
    activation_kernels<Relu>, activation_kernels<Gelu>, activation_kernels<Tanh>, activation_kernels<Sigmoid>, {}};

}  // namespace throughtime::TT_ISA
