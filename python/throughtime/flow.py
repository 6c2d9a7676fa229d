"""`gradient_flow`: the way back through time, and through stacks of layers, with a power of two beside every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, layer_norm
from ._arguments import Array, as_array, features_together, float_array
from ._finite import first_broken, forward_fault, last_of, valid_of
from ._memory import with_room
from ._scaled import ZERO, Scaled, add, has_nan, log10_norm, scaled, times
from ._torch_modules import from_torch
from .activations import Activation, ActivationTape
from .batch_norm import BatchNorm, BatchNormTape
from .batch_norm import Saved as BatchSaved
from .blocks import BlockTape, LayerNorm, LayerNormTape, Pass, Sequential, SequentialTape
from .flow_result import GradientFlow, StackFlow
from .layer import Layer
from .mlp import MLP, MLPTape
from .modules import Embedding, EmbeddingTape, Linear, LinearTape
from .recurrent import Recurrent
from .tape import Tape

if TYPE_CHECKING:
    from ._core import RecurrentGradients

__all__ = ["gradient_flow"]

_BAND = 40  # bits that exponents may differ by where a layer mixes rows: 100 with the rows' own, and float32 has 126


@with_room
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
    Dropout is switched off, zoneout takes its expectation; BatchNorm takes the statistics of x, as in training, and
    leaves its running ones alone.

    Parameters
    ----------
    layer : RNN, GRU, LSTM, Sequential or another layer
        With any number of layers and directions. What is not recurrent is taken as a stack. A ``torch.nn.RNN``,
        ``GRU`` or ``LSTM``, or one of ``throughtime.torch`` (a block of it too), goes as well, and so do tensors.
    x : (T, B, I) array
        As for the layer's ``forward``. Rows (N, I) have no time in a stack of layers to which they are nothing but a
        batch (`Linear`, `MLP`, norms, activations, `Embedding`): the flow has T = 1 and B = N, and speaks of depth.
    d_output : "last" or array
        The gradient of the loss with respect to the output, in its shape. ``"last"`` is one of ones on what ``h_n``
        holds: each direction's own last step, ``output[lengths[b] - 1, b, :H]`` and, of the reverse direction,
        ``output[0, b, H:]``, or ``output[0, b]`` of a layer with ``reverse=True``. Of a stack whose last layer is not
        recurrent it is one of ones on each sequence's last valid output; where there is no time, on every row's.
    state : optional
        Initial state, as for ``forward``.
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
        If a size does not fit, `d_output` is another word, or a layer without a state is given one.

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
        if isinstance(layer, Sequential):
            return _of_stack(layer, x, d_output, lengths, memory, state)
        return _of_stack(Sequential(layer), x, d_output, lengths, memory, None if state is None else (state,))
    # Of the outputs nobody reads more than their shape.
    tape = layer.forward(x, state, lengths, training=False, output="last", memory=memory)
    shape = (*as_array("x", x).shape[:-1], layer.output_size)
    time_axis = int(layer.batch_first and tape._batched)
    parts = _incoming(shape, layer.dtype, d_output, _valid(tape), time_axis, _reverse_of_last(layer))
    return _RecurrentPass(tape).run(parts, asks_input=False)[0]


def _incoming(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    d_output: Any,
    valid: Array | None,
    time_axis: int,
    reverse: tuple[bool, ...],
) -> list[Scaled]:
    """The loss's gradient, of the output's shape: the features of each direction by themselves."""
    part = (*shape[:-1], shape[-1] // len(reverse))
    if isinstance(d_output, str):
        return [_ones_on_last(part, dtype, valid, time_axis, back) for back in reverse]
    given = float_array("d_output", d_output, dtype, shape)
    if valid is not None:
        given = np.where(valid[..., None], given, dtype.type(0))
    return [scaled(half) for half in np.split(given, len(reverse), axis=-1)]


def _ones_on_last(
    shape: tuple[int, ...], dtype: np.dtype[Any], valid: Array | None, time_axis: int, reverse: bool
) -> Scaled:
    """Ones on the last step that a direction takes in each sequence. The row of ones is there once."""
    exponent = np.full(shape[:-1], ZERO, np.int32)
    in_time = np.moveaxis(exponent, time_axis, 0)
    if valid is None:
        in_time[0 if reverse else -1] = 0
    else:
        in_time[last_of(np.moveaxis(valid, time_axis, 0), reverse)] = 0
    return Scaled(np.broadcast_to(np.ones(shape[-1], dtype), shape), exponent)


def _reverse_of_last(layer: Layer) -> tuple[bool, ...]:
    """Of every direction whose own last step the output holds, side by side, whether it is the reverse one."""
    if isinstance(layer, Sequential):
        return _reverse_of_last(layer.layers[-1])
    if not isinstance(layer, Recurrent):
        return (False,)
    return (False, True) if layer.bidirectional else (layer.reverse,)


def _together(parts: list[Scaled]) -> Scaled:
    """The features side by side; parts of a row have the same exponent where they are not zero."""
    values = parts[0].dense if len(parts) == 1 else np.concatenate([part.dense for part in parts], axis=-1)
    return Scaled(values, np.maximum.reduce([part.exponent for part in parts]))


def _valid(tape: Tape) -> Array | None:
    """Where there is no padding, in the layout of the output."""
    valid = valid_of(tape)
    return None if valid is None else tape._user_layout(valid[..., None])[..., 0]


class _RecurrentPass:
    """The way back through a recurrent layer: the norms it fills, layer by layer from the top."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.count = tape._layer.num_layers * tape._layer.num_directions
        self.fault = forward_fault(tape)
        self.per_sequence = np.full((self.count, *tape._sizes), -np.inf)
        self.per_unit = np.full((self.count, tape._sizes[0], tape._layer._width), -np.inf)

    def run(self, parts: list[Scaled], *, asks_input: bool) -> tuple[GradientFlow, Scaled]:
        """The flow, and what reaches the input where that is asked for; each direction's loss and that in the caller's
        layout.
        """
        tape, layer = self.tape, self.tape._layer
        parts = [self._time_major(part) for part in parts]
        inputs = tape._upper_inputs()
        for number in reversed(range(layer.num_layers)):
            d = self._layer(number, inputs.pop(), parts, asks_input=asks_input or number > 0)
            parts = self.halves(d) if number else []
        return self._flow(), Scaled(tape._user_layout(d.values), tape._user_layout(d.exponent[..., None])[..., 0])

    def halves(self, d: Scaled) -> list[Scaled]:
        """The features of each direction."""
        count, width = self.tape._layer.num_directions, self.tape._layer._width
        if count == 1:
            return [d]
        return [scaled(d.values[..., i * width : (i + 1) * width], d.exponent) for i in range(count)]

    def _time_major(self, d: Scaled) -> Scaled:
        turn, batched = self.tape._layer._time_major, self.tape._batched
        return Scaled(features_together(turn(d.values, batched)), turn(d.exponent[..., None], batched)[..., 0])

    def _flow(self) -> GradientFlow:
        tape, layer = self.tape, self.tape._layer
        reverse = [tape._is_reverse(index) for index in range(self.count)]
        names = [
            f"layer {index // layer.num_directions}{', reverse' if back else ''}" for index, back in enumerate(reverse)
        ]
        sequences = tape._unbatch(self.per_sequence, 2)
        lengths = None if tape._lengths is None else tape._unbatch(tape._lengths, 0)
        return GradientFlow(
            sequences,
            self.per_unit,
            reverse=reverse,
            names=names,
            title=f"Gradient flow of {layer!r}",
            lengths=lengths,
            fault=self.fault,
        )

    def _layer(self, number: int, x: Array, parts: list[Scaled], *, asks_input: bool) -> Scaled:
        """Both directions of one layer, each with its own part of the gradient; what reaches their input."""
        first = number * len(parts)
        below = [self._direction(first + i, x, part, asks_input=asks_input) for i, part in enumerate(parts)]
        return add(*below) if asks_input and len(below) > 1 else below[0]

    def _direction(self, index: int, x: Array, d: Scaled, *, asks_input: bool) -> Scaled:
        tape = self.tape
        d_input = _core.empty(x.shape, x.dtype) if asks_input else None
        exponent = np.full(tape._sizes, ZERO, np.int32)
        gradients: RecurrentGradients = {
            "d_output": d.values,
            "d_output_exponent": np.ascontiguousarray(d.exponent),
            "exponent": exponent,
            "d_input": d_input,
            "log10_sequence": self.per_sequence[index],
            "log10_unit": self.per_unit[index],
        }
        if tape._sizes[1]:
            _core.backward(tape._layer._cell, tape._problem(index, x, tape._states, tape._every), gradients)
        self._mark_lost(index, d, d_input, exponent)
        return Scaled(x, exponent) if d_input is None else scaled(d_input, exponent)

    def _mark_lost(self, index: int, d: Scaled, d_input: Array | None, exponent: Array) -> None:
        """NaN where a gradient came through what is not finite, which a ReLU, for one, turns into zeros."""
        tape, (steps, batch) = self.tape, self.tape._sizes
        arrives, broken = d.exponent != ZERO, has_nan(d)
        if not batch or (self.fault is None and not broken.any()):
            return
        valid, reverse = valid_of(tape), tape._is_reverse(index)
        taken = np.arange(steps)[::-1, None] if reverse else np.arange(steps)[:, None]
        latest, latest_nan = (np.where(rows, taken, -1).max(axis=0) for rows in (arrives, broken))
        lost = (first_broken(tape, index).min(axis=0) <= latest) & (taken < latest) | (taken <= latest_nan)
        if valid is not None:
            lost &= valid
        self.per_sequence[index][lost] = np.nan
        self.per_unit[index][lost.any(axis=1)] = np.nan
        if d_input is not None:
            d_input[lost], exponent[lost] = np.nan, 0


def _of_stack(stack: Sequential, x: Any, d_output: Any, lengths: Any, memory: str | int, state: Any) -> StackFlow:
    takes_memory = any(isinstance(leaf, Recurrent) for leaf in stack._leaves())
    own_memory = memory if takes_memory or memory != "full" else None
    options = {**stack._handed_on(memory=own_memory), "training": False}
    tape = stack._record(x, lengths, Pass(options, save=True, masks={}, state=state, batch_statistics=True))
    output = tape.output
    if lengths is None and output.ndim < 3 and all(isinstance(leaf, _ROW_BY_ROW) for leaf in stack._leaves()):
        time_axis = None
        if isinstance(d_output, str):
            d_output = np.ones(output.shape, output.dtype)
    else:
        time_axis = int(output.ndim > 2 and stack._batch_first())
    reverse = _reverse_of_last(stack) if isinstance(d_output, str) else (False,)
    parts = _incoming(output.shape, output.dtype, d_output, tape._valid, time_axis or 0, reverse)
    fault = tape._fault()
    return _StackPass(time_axis, tape._valid, fault).through(tape, _together(parts), fault)[0]


_ROW_BY_ROW = (Activation, BatchNorm, Embedding, LayerNorm, Linear, MLP)  # whose rows are nothing but a batch


class _StackPass:
    """The way back through layers in layers. Time is on this axis of their arrays, None: rows without time; padding
    is where `valid` is false.
    """

    def __init__(self, time_axis: int | None, valid: Array | None, fault: str | None) -> None:
        self.time_axis, self.fault = time_axis, fault
        self.lengths = None if valid is None else valid.sum(axis=time_axis)

    def through(self, tape: SequentialTape, d: Scaled, fault: str | None) -> tuple[StackFlow, Scaled]:
        """The flow of layers whose forward has this fault, and what reaches the lowest one."""
        layers, norms, flows = tape._stack.layers, [log10_norm(d)], []
        for inner in reversed(tape.layers):
            flow, d = self._back(inner, d)
            flows.append(flow)
            norms.append(log10_norm(d))
        names = [f"into layers[{i}] ({type(layer).__name__})" for i, layer in enumerate(layers)]
        rows = np.stack(norms[::-1])
        rows = rows[:, None] if self.time_axis is None else np.moveaxis(rows, 1 + self.time_axis, 1)
        title = f"Gradient flow of a stack of {len(layers)} layer{'s' if len(layers) > 1 else ''}"
        flow = StackFlow(
            rows,
            names=[*names, "output"],
            layers=flows[::-1],
            title=title,
            lengths=self.lengths,
            fault=fault,
        )
        return flow, d

    def _back(self, tape: Any, d: Scaled) -> tuple[GradientFlow | None, Scaled]:
        """A layer's own flow where there is one, and what reaches its input."""
        match tape:
            case Tape():
                pass_ = _RecurrentPass(tape)
                return pass_.run(pass_.halves(d), asks_input=True)
            case SequentialTape():
                return self.through(tape, d, tape._fault())
            case BlockTape():
                return self._block(tape, d)
            case EmbeddingTape():
                return None, Scaled(d.values, np.full_like(d.exponent, ZERO))
            case BatchNormTape():
                return None, self._superposed(lambda part: tape._saved.backward(part)[0], d, axis=None)
            case ActivationTape() | LinearTape() | LayerNormTape() | MLPTape():  # row by row
                d_input = tape.backward(d.dense).input
                assert d_input is not None
                if self.fault is not None:
                    d_input[~np.isfinite(tape.output).all(axis=-1) & (d.exponent != ZERO)] = np.nan
                return None, scaled(d_input, d.exponent)
            case _:
                return None, self._superposed(lambda part: tape.backward(part).input, d, axis=self.time_axis)

    def _block(self, tape: BlockTape, d: Scaled) -> tuple[GradientFlow | None, Scaled]:
        block = tape._block

        def norm(d: Scaled) -> Scaled:
            assert tape._saved is not None
            if isinstance(tape._saved, BatchSaved):
                batch = tape._saved
                return self._superposed(lambda part: batch.backward(part)[0], d, axis=None)
            return scaled(layer_norm.backward(None, d.dense, tape._saved)[0], d.exponent)

        if block.norm_place == "post":
            d = norm(d)
        flow, below = self._back(tape.sublayer, times(d, block.branch_scale))
        if block.norm_place == "pre":
            below = norm(below)
        return flow, add(d, below) if block.residual else below

    def _superposed(self, backward: Callable[[Array], Array], d: Scaled, axis: int | None) -> Scaled:
        """A layer that mixes rows along an axis, or all: similar ones at a time, for it is linear in the gradient."""
        rest = d.exponent.astype(np.int64)
        below: Scaled | None = None
        while below is None or (rest != ZERO).any():
            top = rest.max(axis=axis, keepdims=True, initial=ZERO)
            here = (rest != ZERO) & (rest > top - _BAND)
            part = Scaled(d.values, np.where(here, rest - top, ZERO).astype(np.int32)).plain()
            found = scaled(backward(part), np.broadcast_to(top, rest.shape))
            below = found if below is None else add(below, found)
            rest[here] = ZERO
        return below
