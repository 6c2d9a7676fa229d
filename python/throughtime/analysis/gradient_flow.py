"""`gradient_flow`: backpropagation through time and stacks of layers, with a power-of-two exponent for every row."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arguments import Array, float_array
from .._finite import last_of
from .._memory import with_room
from .._scaled import ZERO, Scaled, scaled
from .._torch_modules import from_torch
from ..backend.choose import require_host
from ..layers.layer import Layer
from ..layers.scaled_backward import StackNorms, Way, scaled_backward
from ..layers.sequential import Sequential, forward_for_flow
from ..recurrent import Recurrent
from ..recurrent.architecture import Architecture
from ..recurrent.record import Record
from ..recurrent.scaled_backward import ScaledPass
from .flow_result import GradientFlow, StackFlow

__all__ = ["gradient_flow"]


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
    """Measure the gradient's norm at every timestep, however far below or above the range of floats.

    Backpropagates like :meth:`Tape.backward`, but without parameter gradients. The carried gradient of each sequence is
    scaled by a power of two whose exponent is stored separately, so a norm of 1e-1500 is as exact as one of 1. Dropout
    is off, zoneout uses its expectation, and BatchNorm uses the statistics of x, as in training, without updating its
    running statistics.

    Parameters
    ----------
    layer : RNN, GRU, LSTM, Sequential or another layer
        Any number of layers and directions. A layer that is not recurrent is treated as a stack. ``torch.nn.RNN``,
        ``GRU`` and ``LSTM``, the modules and blocks of ``throughtime.torch``, and tensors are accepted too.
    x : (T, B, I) array
        As for the layer's ``forward``. Rows (N, I) have no time axis in a stack whose layers all treat them as a batch
        (`Linear`, `MLP`, norms, activations, `Embedding`): the flow has T = 1 and B = N, and describes depth only.
    d_output : "last" or array
        The gradient of the loss with respect to the output, in its shape. ``"last"`` puts ones on the entries of
        ``h_n``, the last step of each direction: ``output[lengths[b] - 1, b, :H]``, ``output[0, b, H:]`` for the
        reverse direction, and ``output[0, b]`` for a layer with ``reverse=True``. If the last layer of a stack is not
        recurrent, the ones are on each sequence's last valid output; without a time axis, on every row's output.
    state : optional
        Initial state, as for ``forward``.
    lengths : (B,) integers, optional
        As for ``forward``. The gradient in the padding is zero.
    memory : {"full", "states", "checkpoint"} or int
        As for ``forward``: ``"checkpoint"`` for long sequences.

    Returns
    -------
    GradientFlow
        For a stack, a :class:`.StackFlow`, whose rows are the gradients of each layer's input and of the output.

    Raises
    ------
    TypeError
        If `layer` is not a layer, or the dtype of an array differs from the layer's.
    ValueError
        If a size does not fit, `d_output` is another string, or a state is given to a layer without one.

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
    require_host("gradient_flow", layer.device)
    if isinstance(d_output, str) and d_output != "last":
        raise ValueError(f"d_output must be 'last' or an array, got {d_output!r}")
    if not isinstance(layer, Recurrent):
        if isinstance(layer, Sequential):
            return _of_stack(layer, x, d_output, lengths, memory, state)
        return _of_stack(Sequential(layer), x, d_output, lengths, memory, None if state is None else (state,))
    # Only the shape of the output is needed.
    tape = layer.forward(x, state, lengths, training=False, output="last", memory=memory)
    return flow_of_record(tape.record, repr(layer), d_output)


def flow_of_record(record: Record, layer: str, d_output: Any = "last") -> GradientFlow:
    """The flow through a recurrent layer, from the record of its forward."""
    described, (steps, batch) = record.architecture, record.sizes
    time_axis = int(described.batch_first and record.batched)
    rows = () if not record.batched else (batch, steps) if described.batch_first else (steps, batch)
    shape = (*(rows or (steps,)), described.output_size)
    reverse = described.goes_back[-described.num_directions :]
    parts = _incoming(shape, record.dtype, d_output, _valid(record), time_axis, reverse)
    pass_ = ScaledPass(layer, record)
    pass_.run(parts, asks_input=False)
    return _flow_of_recurrent(pass_)


def _incoming(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    d_output: Any,
    valid: Array | None,
    time_axis: int,
    reverse: tuple[bool, ...],
) -> list[Scaled]:
    """The gradient of the loss with respect to the output, one array of features per direction."""
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
    """Ones on the last step of a direction in each sequence. All rows are views of one row of ones."""
    exponent = np.full(shape[:-1], ZERO, np.int32)
    in_time = np.moveaxis(exponent, time_axis, 0)
    if valid is None:
        in_time[0 if reverse else -1] = 0
    else:
        in_time[last_of(np.moveaxis(valid, time_axis, 0), reverse)] = 0
    return Scaled(np.broadcast_to(np.ones(shape[-1], dtype), shape), exponent)


def _reverse_of_last(layer: Layer) -> tuple[bool, ...]:
    """For each direction in the features of the output, whether it runs backward in time."""
    if isinstance(layer, Sequential):
        return _reverse_of_last(layer.layers[-1])
    if not isinstance(layer, Recurrent):
        return (False,)
    return layer.architecture.goes_back[-layer.num_directions :]


def _together(parts: list[Scaled]) -> Scaled:
    """The parts concatenated along the features. Nonzero parts of a row have the same exponent."""
    values = parts[0].dense if len(parts) == 1 else np.concatenate([part.dense for part in parts], axis=-1)
    return Scaled(values, np.maximum.reduce([part.exponent for part in parts]))


def _valid(record: Record) -> Array | None:
    """Mask of the steps that are not padding, in the layout of the output; None without lengths."""
    valid = record.valid()
    return None if valid is None else record.user_layout(valid[..., None])[..., 0]


def _of_stack(stack: Sequential, x: Any, d_output: Any, lengths: Any, memory: str | int, state: Any) -> StackFlow:
    return flow_of_tape(stack, *forward_for_flow(stack, x, lengths, state, memory), d_output)


def flow_of_tape(stack: Sequential, tape: Any, valid: Array | None, way: Way, d_output: Any = "last") -> StackFlow:
    """The flow through a stack, from what `forward_for_flow` returns."""
    output = tape.output
    if way.time_axis is None and isinstance(d_output, str):
        d_output = np.ones(output.shape, output.dtype)
    reverse = _reverse_of_last(stack) if isinstance(d_output, str) else (False,)
    parts = _incoming(output.shape, output.dtype, d_output, valid, way.time_axis or 0, reverse)
    found, _ = scaled_backward(stack, tape, _together(parts), way)
    return _flow_of_stack(found, way.time_axis, None if valid is None else valid.sum(axis=way.time_axis))


def _flow_of(found: Any, time_axis: int | None, lengths: Array | None) -> GradientFlow | None:
    """The flow inside a layer. `time_axis` is that of its arrays; None for rows without time."""
    if isinstance(found, StackNorms):
        return _flow_of_stack(found, time_axis, lengths)
    return None if found is None else _flow_of_recurrent(found)


def _flow_of_stack(found: StackNorms, time_axis: int | None, lengths: Array | None) -> StackFlow:
    layers = found.layers
    names = [f"into layers[{i}] ({type(layer).__name__})" for i, layer in enumerate(layers)]
    rows = np.stack(found.norms)
    rows = rows[:, None] if time_axis is None else np.moveaxis(rows, 1 + time_axis, 1)
    return StackFlow(
        rows,
        names=[*names, "output"],
        layers=[_flow_of(inner, time_axis, lengths) for inner in found.inside],
        title=f"Gradient flow of a stack of {len(layers)} layer{'s' if len(layers) > 1 else ''}",
        lengths=lengths,
        fault=found.fault,
    )


def _flow_of_recurrent(found: ScaledPass) -> GradientFlow:
    record = found.record
    return GradientFlow(
        record.unbatch(found.per_sequence, 2),
        found.per_unit,
        reverse=record.architecture.goes_back,
        names=row_names(record.architecture),
        title=f"Gradient flow of {found.layer}",
        lengths=None if record.lengths is None else record.unbatch(record.lengths, 0),
        fault=found.fault,
    )


def row_names(architecture: Architecture) -> list[str]:
    """The names of a recurrent layer's rows: its layers and directions."""
    directions = architecture.num_directions
    return [
        f"layer {index // directions}{', reverse' if back else ''}" for index, back in enumerate(architecture.goes_back)
    ]
