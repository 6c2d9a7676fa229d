"""One forward and one backward pass through a model, and what they leave of each of its innermost layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arguments import Array
from .._finite import last_of
from ..analysis.flow_result import GradientFlow, StackFlow
from ..analysis.gradient_flow import flow_of_record, flow_of_tape
from ..layers.layer import Layer
from ..layers.norm import Norm
from ..layers.residual import ResidualBlock
from ..layers.sequential import Sequential, forward_for_flow
from ..recurrent import Recurrent


@dataclass(frozen=True)
class Leaf:
    """An innermost layer of a model after the two passes.

    Attributes
    ----------
    place : str
        Its place in the model, such as ``"0.sublayer"``; of a layer by itself the name of its class.
    layer : Layer
    tape : tape
        Of its forward.
    flow : GradientFlow or None
        The gradient inside a recurrent layer.
    valid : bool array or None
        Mask of the rows of its output that are not padding; None if there is no padding.
    """

    place: str
    layer: Layer
    tape: Any
    flow: GradientFlow | None
    valid: Array | None


def run(layer: Layer, x: Any, d_output: Any, state: Any, lengths: Any) -> tuple[GradientFlow, list[Leaf]]:
    """The flow of a model, as `gradient_flow` returns it, and its innermost layers in their order."""
    if isinstance(layer, Recurrent):
        own = layer.forward(x, state, lengths, training=False, output="last")
        flow = flow_of_record(own.record, repr(layer), d_output)
        return flow, [Leaf(type(layer).__name__, layer, own, flow, None)]
    stack = layer if isinstance(layer, Sequential) else Sequential(layer)
    if stack is not layer and state is not None:
        state = (state,)
    tape, valid, way = forward_for_flow(stack, x, lengths, state, "full")
    if isinstance(d_output, str) and _normalises(stack.layers[-1]):
        d_output = _signs_on_last(tape.output, valid, way.time_axis)
    found = flow_of_tape(stack, tape, valid, way, d_output)
    if stack is layer:
        return found, list(_leaves(layer, tape, found, "", valid))
    return found, list(_leaves(layer, tape.layers[0], found.layers[0], "", valid))


def _normalises(layer: Layer) -> bool:
    """Whether the output is that of a norm. Its mean is constant, so a gradient of ones is zero below."""
    if isinstance(layer, Sequential):
        return _normalises(layer.layers[-1])
    if isinstance(layer, ResidualBlock):
        return layer.norm_place == "post" or (not layer.residual and _normalises(layer.sublayer))
    return isinstance(layer, Norm)


def _signs_on_last(output: Array, valid: Array | None, time_axis: int | None) -> Array:
    """Random signs on the last valid output of each sequence; without a time axis, on all rows."""
    signs = np.random.Generator(np.random.PCG64(0)).choice(np.array([-1, 1], output.dtype), output.shape)
    if time_axis is None:
        return signs
    steps = np.ones(output.shape[:-1], np.bool_) if valid is None else valid
    last = np.moveaxis(last_of(np.moveaxis(steps, time_axis, 0), False), 0, time_axis)
    return np.where(last[..., None], signs, output.dtype.type(0))


def _leaves(layer: Layer, tape: Any, flow: GradientFlow | None, place: str, valid: Array | None) -> Iterator[Leaf]:
    prefix = f"{place}." if place else ""
    if isinstance(layer, Sequential):
        inside = flow.layers if isinstance(flow, StackFlow) else (None,) * len(layer.layers)
        for i, (inner, own, within) in enumerate(zip(layer.layers, tape.layers, inside, strict=True)):
            yield from _leaves(inner, own, within, f"{prefix}{i}", valid)
    elif isinstance(layer, ResidualBlock):
        yield from _leaves(layer.sublayer, tape.sublayer, flow, f"{prefix}sublayer", valid)
    else:
        yield Leaf(place or type(layer).__name__, layer, tape, flow, valid)
