"""`gradient_flow`: the way back through time, and through stacks of layers, with a power of two beside every row."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, layer_norm
from ._arguments import Array, as_array, features_together, float_array
from ._scaled import ZERO, Scaled, add, log10_norm, scaled, times
from ._torch_modules import from_torch
from .blocks import BlockTape, LayerNormTape, Sequential, SequentialTape
from .flow_result import GradientFlow, StackFlow
from .layer import Layer
from .mlp import MLPTape
from .modules import EmbeddingTape, LinearTape
from .recurrent import Recurrent
from .tape import Tape

__all__ = ["gradient_flow"]

_BAND = 40  # bits that exponents may differ by where a layer mixes rows: 100 with the rows' own, and float32 has 126


def gradient_flow(
    layer: Layer,
    x: Any,
    d_output: Any = "last",
    *,
    state: Any = None,
    lengths: Any = None,
    memory: str | int = "full",
) -> GradientFlow:
    """Find how large the gradient is at every timestep, however far below or above the range of floats.

    The way back is that of :meth:`Tape.backward`, without the gradients of parameters. What is carried of each sequence
    is the gradient over a power of two, whose exponent is kept beside it; so a norm of 1e-1500 is as exact as one of 1.
    Dropout is switched off, zoneout takes its expectation.

    Parameters
    ----------
    layer : RNN, GRU, LSTM, Sequential or another layer
        With any number of layers and directions. What is not recurrent is taken as a stack. A ``torch.nn.RNN``,
        ``GRU`` or ``LSTM``, or one of ``throughtime.torch`` (a block of it too), goes as well, and so do tensors.
    x : (T, B, I) array
        As for the layer's ``forward``.
    d_output : "last" or array
        The gradient of the loss with respect to the output, in its shape; ``"last"`` is one of ones on each sequence's
        last valid output, ``output[lengths[b] - 1, b]``.
    state : optional
        Initial state of a recurrent layer.
    lengths : (B,) integers, optional
        As for ``forward``. In the padding no gradient arrives.
    memory : {"full", "states", "checkpoint"} or int
        As for ``forward``: ``"checkpoint"`` for long sequences.

    Returns
    -------
    GradientFlow
        For a stack a :class:`StackFlow`, whose rows are the gradients of what enters each layer, and of the output.

    Raises
    ------
    TypeError
        If `layer` is no layer, or an array has another dtype than the layer.
    ValueError
        If a size does not fit, `d_output` is another word, or a stack is given a `state`.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((5000, 4, 8), dtype=np.float32)
    >>> flow = tt.gradient_flow(tt.RNN(8, 16, seed=0), x)
    >>> flow.log10_norm.shape, flow.log10_unit.shape
    ((1, 5000), (1, 5000, 16))
    """
    layer, x, d_output, state = from_torch(layer, x, d_output, state)
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a throughtime layer, got {type(layer).__name__}")
    layer._needs_host("gradient_flow")
    if isinstance(d_output, str) and d_output != "last":
        raise ValueError(f"d_output must be 'last' or an array, got {d_output!r}")
    if not isinstance(layer, Recurrent):
        if state is not None:
            raise ValueError("state was given, but the layers of a stack start from zeros")
        stack = layer if isinstance(layer, Sequential) else Sequential(layer)
        return _of_stack(stack, x, d_output, lengths, memory)
    # Of the outputs nobody reads more than their shape.
    tape = layer.forward(x, state, lengths, training=False, output="last", memory=memory)
    shape = (*as_array("x", x).shape[:-1], layer.output_size)
    d = _incoming(shape, layer.dtype, d_output, _valid(tape), int(layer.batch_first and tape._batched))
    return _RecurrentPass(tape).run(d, asks_input=False)[0]


def _incoming(
    shape: tuple[int, ...], dtype: np.dtype[Any], d_output: Any, valid: Array | None, time_axis: int
) -> Scaled:
    """The loss's gradient, of the output's shape. Of ones on the last valid outputs, the row of ones is there once."""
    if not isinstance(d_output, str):
        given = float_array("d_output", d_output, dtype, shape)
        return scaled(given if valid is None else np.where(valid[..., None], given, dtype.type(0)))
    exponent = np.full(shape[:-1], ZERO, np.int32)
    in_time = np.moveaxis(exponent, time_axis, 0)
    if valid is None:
        in_time[-1] = 0
    else:
        last = np.moveaxis(valid, time_axis, 0).copy()
        last[:-1] &= ~last[1:]
        in_time[last] = 0
    return Scaled(np.broadcast_to(np.ones(shape[-1], dtype), shape), exponent)


def _valid(tape: Tape) -> Array | None:
    """Where there is no padding, in the layout of the output."""
    if tape._lengths is None:
        return None
    valid = np.arange(tape._sizes[0])[:, None] < tape._lengths
    return tape._user_layout(valid[..., None])[..., 0]


class _RecurrentPass:
    """The way back through a recurrent layer: the norms it fills, layer by layer from the top."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.count = tape._layer.num_layers * tape._layer.num_directions
        self.per_sequence = np.full((self.count, *tape._sizes), -np.inf)
        self.per_unit = np.full((self.count, tape._sizes[0], tape._layer._width), -np.inf)

    def run(self, d: Scaled, *, asks_input: bool) -> tuple[GradientFlow, Scaled]:
        """The flow, and what reaches the input where that is asked for; `d` and that in the caller's layout."""
        tape, layer = self.tape, self.tape._layer
        values, exponent = (layer._time_major(array, tape._batched) for array in (d.values, d.exponent[..., None]))
        d = Scaled(features_together(values), exponent[..., 0])
        inputs = tape._upper_inputs()
        for number in reversed(range(layer.num_layers)):
            d = self._layer(number, inputs.pop(), d, asks_input=asks_input or number > 0)
        return self._flow(), Scaled(tape._user_layout(d.values), tape._user_layout(d.exponent[..., None])[..., 0])

    def _flow(self) -> GradientFlow:
        tape, layer = self.tape, self.tape._layer
        reverse = [tape._is_reverse(index) for index in range(self.count)]
        names = [
            f"layer {index // layer.num_directions}{', reverse' if back else ''}" for index, back in enumerate(reverse)
        ]
        sequences = tape._unbatch(self.per_sequence, 2)
        return GradientFlow(sequences, self.per_unit, reverse=reverse, names=names, title=f"Gradient flow of {layer!r}")

    def _layer(self, number: int, x: Array, d: Scaled, *, asks_input: bool) -> Scaled:
        """Both directions of one layer; what reaches its input."""
        count, width = self.tape._layer.num_directions, self.tape._layer._width
        if count == 1:
            return self._direction(number, x, d, asks_input=asks_input)
        halves = [scaled(d.values[:, :, i * width : (i + 1) * width], d.exponent) for i in range(count)]
        parts = [self._direction(number * count + i, x, d, asks_input=asks_input) for i, d in enumerate(halves)]
        return add(*parts) if asks_input else parts[0]

    def _direction(self, index: int, x: Array, d: Scaled, *, asks_input: bool) -> Scaled:
        tape = self.tape
        d_input = _core.empty(x.shape, x.dtype) if asks_input else None
        exponent = np.full(tape._sizes, ZERO, np.int32)
        gradients = {
            "output": d.values,
            "output_exponent": np.ascontiguousarray(d.exponent),
            "exponent": exponent,
            "input": d_input,
            "log10_sequence": self.per_sequence[index],
            "log10_unit": self.per_unit[index],
        }
        if tape._sizes[1]:
            _core.backward(tape._layer._cell, tape._problem(index, x, tape._states, tape._every), gradients)
        return Scaled(x, exponent) if d_input is None else scaled(d_input, exponent)


def _of_stack(stack: Sequential, x: Any, d_output: Any, lengths: Any, memory: str | int) -> StackFlow:
    takes_memory = any(isinstance(leaf, Recurrent) for leaf in stack._leaves())
    own_memory = memory if takes_memory or memory != "full" else None
    tape = stack.forward(x, lengths, training=False, memory=own_memory)
    time_axis = int(tape.output.ndim > 2 and stack._batch_first())
    d = _incoming(tape.output.shape, stack.dtype, d_output, tape._valid, time_axis)
    return _StackPass(time_axis).through(tape, Scaled(d.dense, d.exponent))[0]


class _StackPass:
    """The way back through layers in layers, whose arrays have time on this axis."""

    def __init__(self, time_axis: int) -> None:
        self.time_axis = time_axis

    def through(self, tape: SequentialTape, d: Scaled) -> tuple[StackFlow, Scaled]:
        """The flow, and what reaches the lowest layer."""
        layers, norms, flows = tape._stack.layers, [log10_norm(d)], []
        for inner in reversed(tape.layers):
            flow, d = self._back(inner, d)
            flows.append(flow)
            norms.append(log10_norm(d))
        names = [f"into layers[{i}] ({type(layer).__name__})" for i, layer in enumerate(layers)]
        rows = np.moveaxis(np.stack(norms[::-1]), 1 + self.time_axis, 1)
        title = f"Gradient flow of a stack of {len(layers)} layer{'s' if len(layers) > 1 else ''}"
        return StackFlow(rows, names=[*names, "output"], layers=flows[::-1], title=title), d

    def _back(self, tape: Any, d: Scaled) -> tuple[GradientFlow | None, Scaled]:
        """A layer's own flow where there is one, and what reaches its input."""
        match tape:
            case Tape():
                return _RecurrentPass(tape).run(d, asks_input=True)
            case SequentialTape():
                return self.through(tape, d)
            case BlockTape():
                return self._block(tape, d)
            case EmbeddingTape():
                return None, Scaled(d.values, np.full_like(d.exponent, ZERO))
            case LinearTape() | LayerNormTape() | MLPTape():  # row by row
                d_input = tape.backward(d.dense).input
                assert d_input is not None
                return None, scaled(d_input, d.exponent)
            case _:
                return None, self._superposed(tape, d)

    def _block(self, tape: BlockTape, d: Scaled) -> tuple[GradientFlow | None, Scaled]:
        block = tape._block

        def norm(d: Scaled) -> Scaled:
            assert tape._saved is not None
            return scaled(layer_norm.backward(None, d.dense, tape._saved)[0], d.exponent)

        if block.norm_place == "post":
            d = norm(d)
        flow, below = self._back(tape.sublayer, times(d, block.branch_scale))
        if block.norm_place == "pre":
            below = norm(below)
        return flow, add(d, below) if block.residual else below

    def _superposed(self, tape: Any, d: Scaled) -> Scaled:
        """A layer that mixes timesteps: of rows of similar size at a time, for it is linear in the gradient."""
        rest = d.exponent.astype(np.int64)
        below: Scaled | None = None
        while below is None or (rest != ZERO).any():
            top = rest.max(axis=self.time_axis, keepdims=True)
            here = (rest != ZERO) & (rest > top - _BAND)
            part = Scaled(d.values, np.where(here, rest - top, ZERO).astype(np.int32)).plain()
            found = scaled(tape.backward(part).input, np.broadcast_to(top, rest.shape))
            below = found if below is None else add(below, found)
            rest[here] = ZERO
        return below
