"""One forward and one backward pass through a model, and what they leave of each of its innermost layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._arguments import Array
from ..analysis.flow_result import GradientFlow, StackFlow
from ..analysis.gradient_flow import flow_of_record, flow_of_tape
from ..layers.layer import Layer
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
    found = flow_of_tape(stack, tape, valid, way, d_output)
    if stack is layer:
        return found, list(_leaves(layer, tape, found, "", valid))
    return found, list(_leaves(layer, tape.layers[0], found.layers[0], "", valid))


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
