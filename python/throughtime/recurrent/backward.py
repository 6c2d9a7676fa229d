"""The backward pass: layer by layer from the highest, each direction by one call of the kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arguments import TIMESTEPS, Array
from .._finite import raise_fault
from ..backend.choose import require_host
from ..layers import add_layer_norm as layer_norm
from ..layers.rows import affine
from .architecture import EPS
from .faults import overflow
from .forward import upper_inputs
from .record import Record, State

if TYPE_CHECKING:
    from .._core import RecurrentGradients


class Gradients:
    """The gradients that :meth:`Tape.backward` returns.

    Attributes
    ----------
    input : (T, B, I) array
        dL/dx_t, in the layout of x.
    parameters : dict of str to array
        dL/dW, named as the layer's parameters.
    initial_state : (L*D, B, H) array, or a pair of them for the LSTM
    hidden, cell : (L*D, T, B, H) array
        Total dL/dh_t and dL/dc_t, if asked for (they are by default).
    gates : (L*D, T, B, G*H) array
        Gradient of the input's part of the pre-activations, ``W_ih x + b_ih``, or ``LN(W_ih x) + b_ih`` with layer
        normalisation, if asked for. Its sum over t is each sequence's contribution to the gradient of ``bias_ih``.
    products : (L*D, T, B, G*H) array
        Gradient of the product ``W_ih x`` alone, if asked for: ``sum_t products[i, t, b]^T x[t, b]``, with the layer's
        own input x, is the contribution of sequence b to the gradient of ``weight_ih``. Equal to ``gates`` unless
        layer normalisation stands between the product and the bias.
    parameter_norms : dict of str to (T,) float64 array
        Frobenius norm of each timestep's contribution to each parameter's gradient, if asked for.
    clipped : (L*D, T, B) bool array
        Where ``clip`` took effect, if it was given.
    """

    input: Array
    parameters: dict[str, Array]
    initial_state: State
    hidden: Array
    cell: Array
    gates: Array
    products: Array
    parameter_norms: dict[str, Array]
    clipped: Array

    def __init__(self, **arrays: Any) -> None:
        self.__dict__.update({name: value for name, value in arrays.items() if value is not None})

    if not TYPE_CHECKING:  # type checkers would accept any name

        def __getattr__(self, name: str) -> Any:
            if name in TIMESTEPS:
                raise AttributeError(
                    f"grads.{name} was not asked for: tape.backward(..., timesteps=({name!r}, ...)); "
                    "a layer without a cell state has no 'cell'"
                )
            if name == "clipped":
                raise AttributeError("grads.clipped exists only after tape.backward(..., clip=...)")
            raise AttributeError(f"gradients have no {name!r}")

    def without(self, names: Set[str]) -> Gradients:
        """The same gradients, except these."""
        return self if not names else Gradients(**{k: array for k, array in vars(self).items() if k not in names})

    def __repr__(self) -> str:
        return f"Gradients({', '.join(self.__dict__)})"


@dataclass(slots=True)
class Loss:
    """The incoming gradients, as the kernels take them; None for zeros."""

    d_output: Array | None = None  # (T, B, D*H)
    d_final_state: Sequence[Array | None] | None = None  # of each state, (L*D, B, width)
    d_cell: Array | None = None  # (L*D, T, B, H)


@dataclass(slots=True)
class Asked:
    """The gradients that a backward computes, and its options."""

    timesteps: Set[str] = frozenset()
    input: bool = True
    initial_state: bool = True
    parameters: Set[str] | None = None  # None: all
    truncate: int | None = None
    clip: float | None = None
    check_finite: bool = False  # check the gradients it computes


def run_backward(record: Record, loss: Loss, asked: Asked) -> Gradients:
    """Backpropagate the incoming gradients through the forward that made this record."""
    return _Backward(record, loss, asked).run()


class _Backward:
    """One backward pass: the arrays it fills, layer by layer from the top."""

    def __init__(self, record: Record, loss: Loss, asked: Asked) -> None:
        self.record, self.loss, self.asked = record, loss, asked
        described, (steps, batch), dtype = record.architecture, record.sizes, record.dtype
        empty, zeros = record.backend.empty, record.backend.zeros
        new = empty if batch else zeros  # kernels fill them
        shapes = described.parameter_shapes
        self.parameters = {name: new(shapes[name], dtype) for name in self._wanted_parameters()}
        self.lowest = self._lowest_layer()
        # With B = 0 no kernel runs, and these gradients are empty.
        self.initial = [empty((described.count, batch, width), dtype) for width in described.widths]
        per_step = (described.count, steps, batch)
        self.states: dict[str, Array] = {
            name: empty((*per_step, width), dtype)
            for name, width in zip(described.states, described.widths, strict=True)
            if name in asked.timesteps or asked.check_finite
        }
        self.gates = self.products = self.clipped = None
        if "gates" in asked.timesteps or "products" in asked.timesteps:
            self.gates = empty((*per_step, described.gate_rows), dtype)
        if "products" in asked.timesteps:
            self.products = self.gates  # equal without layer normalisation
        self.normalises = self.products is not None and "weight_ln_ih" in described.parameter_names
        if self.normalises:
            require_host("timesteps='products' with layer normalisation", record.backend.device)
            self.products = empty((*per_step, described.gate_rows), dtype)
        if asked.clip:
            self.clipped = zeros(per_step, np.bool_)
        asks_norms = "parameter_norms" in asked.timesteps
        self.norms = {name: zeros((steps,), np.float64) for name in self.parameters} if asks_norms else None

    def run(self) -> Gradients:
        record, asked = self.record, self.asked
        inputs, d_output = upper_inputs(record), self.loss.d_output
        for layer in reversed(range(self.lowest, record.architecture.num_layers)):
            d_output = self._layer(layer, inputs.pop(), d_output)
            if layer > self.lowest:
                assert d_output is not None
                d_output = record.drop(layer - 1, d_output)
        self._drop_weights()
        arrays: dict[str, Array | None] = {
            **{name: array for name, array in self.states.items() if name in asked.timesteps},
            "gates": self.gates if "gates" in asked.timesteps else None,
            "products": self.products,
            "clipped": self.clipped,
        }
        return Gradients(
            input=None if d_output is None or not asked.input else record.user_layout(d_output),
            parameters=self.parameters,
            initial_state=record.as_state(self.initial),
            parameter_norms=self.norms,
            **{name: None if array is None else record.unbatch(array, 2) for name, array in arrays.items()},
        )

    def _wanted_parameters(self) -> Iterable[str]:
        """The names of the parameters to fill: the kernels fill all of a layer and direction, or none."""
        described, wanted = self.record.architecture, self.asked.parameters
        if wanted is None or "parameter_norms" in self.asked.timesteps:
            return described.parameter_shapes
        groups = [own.values() for own in described.own_parameters]
        return [name for group in groups if not wanted.isdisjoint(group) for name in group]

    def _lowest_layer(self) -> int:
        """The lowest layer that has a wanted gradient."""
        asked, described = self.asked, self.record.architecture
        if asked.input or asked.initial_state or asked.timesteps or asked.check_finite:
            return 0
        wanted = [f"weight_hh{suffix}" in self.parameters for suffix in described.suffixes]
        return wanted.index(True) // described.num_directions if True in wanted else described.num_layers

    def _drop_weights(self) -> None:
        """Turn the gradients of dropped-out weights into those of the parameters."""
        record, probability = self.record, self.record.architecture.weight_dropout
        for name in self.parameters.keys() & record.masks.keys():
            self.parameters[name] = record.backend.dropped(self.parameters[name], record.masks[name], probability)
            if self.norms is not None and probability < 1:
                self.norms[name] /= 1 - probability

    def _layer(self, layer: int, x: Array, d_output: Array | None) -> Array | None:
        """Both directions of one layer. Returns the gradient of its input, or None if it is not needed."""
        record, described = self.record, self.record.architecture
        directions, units = described.num_directions, described.width
        d_input = None
        if layer > self.lowest:
            d_input = record.backend.empty(x.shape, x.dtype)
        elif self.asked.input:
            d_input = record.new_layout(x.shape[2])
        for direction in range(directions):
            index = layer * directions + direction
            gradients = self._gradients(index)
            gradients["d_input"] = d_input
            gradients["add_to_input"] = direction > 0
            if d_output is not None:
                own = d_output if directions == 1 else d_output[:, :, direction * units : (direction + 1) * units]
                gradients["d_output"] = own
            if record.sizes[1]:
                problem = record.problem(index, x, record.states, record.every)
                record.backend.backward(described.cell, problem, gradients)
                if self.normalises:
                    self._fill_products(index, x)
            if self.asked.check_finite:
                self._check_finite(index, d_input if direction == directions - 1 else None)
        return d_input

    def _gradients(self, index: int) -> RecurrentGradients:
        """The gradients that the kernel reads and fills, for one layer and direction."""
        described, loss, asked, own = self.record.architecture, self.loss, self.asked, self.parameters
        found: RecurrentGradients = {
            "d_initial_state": {name: array[index] for name, array in zip(described.states, self.initial, strict=True)},
            "d_states": {name: array[index] for name, array in self.states.items()},
            "truncate": asked.truncate,
            "clip": asked.clip,
        }
        names = described.own_parameters[index]
        if own and names["weight_hh"] in own:
            found["d_parameters"] = {name: own[full] for name, full in names.items()}
            if self.norms is not None:  # the kernel fills the norms of biases even if the layer has none
                unread = self.record.backend.zeros((self.record.sizes[0],), np.float64)
                all_names = {"bias_ih": "", "bias_hh": "", **names}
                found["norms"] = {name: self.norms.get(full, unread) for name, full in all_names.items()}
        if loss.d_final_state is not None:
            found["d_final_state"] = {
                name: None if array is None else array[index]
                for name, array in zip(described.states, loss.d_final_state, strict=True)
            }
        if loss.d_cell is not None:
            found["d_cell"] = loss.d_cell[index]
        if self.gates is not None:
            found["d_gates"] = self.gates[index]
        if self.clipped is not None:
            found["clipped"] = self.clipped[index]
        if self.record.masks:
            found["dropped"] = self.record.masks.get(names["weight_hh"])
        return found

    def _fill_products(self, index: int, x: Array) -> None:
        """Compute the gradient of W_ih x from that of LN(W_ih x) + b_ih; W_ih x is recomputed."""
        assert self.gates is not None
        assert self.products is not None
        record = self.record
        names, valid = record.architecture.own_parameters[index], record.valid()
        known = x if valid is None else np.where(valid[..., None], x, x.dtype.type(0))
        product = affine(known.reshape(-1, x.shape[2]), record.parameters[names["weight_ih"]], None)
        gain = record.parameters[names["weight_ln_ih"]]
        _, _, saved = layer_norm.forward(product, None, gain, np.zeros_like(gain), 1.0, EPS)
        assert saved is not None
        d_product, *_ = layer_norm.backward(None, self.gates[index].reshape(product.shape), saved)
        self.products[index] = d_product.reshape(self.products[index].shape)

    def _check_finite(self, index: int, d_input: Array | None) -> None:
        """Raise for the first NaN or infinity in the order of the backward."""
        record, described = self.record, self.record.architecture
        made = {name: array[index] for name, array in self.states.items()}
        raise_fault(overflow(record, index, made if d_input is None else {**made, "input": d_input}))
        direction = ", reverse direction" if described.goes_back[index] else ""
        where = f"layer {index // described.num_directions}{direction}"
        for name in described.own_parameters[index].values():
            if not record.backend.finite(self.parameters[name][None]).all():
                raise FloatingPointError(f"the gradient of parameter {name} overflows in {where}")
        for name, initial in zip(described.states, self.initial, strict=True):
            if not record.backend.finite(initial[index][None]).all():
                raise FloatingPointError(f"the gradient of the initial state, {name}, is not finite in {where}")
