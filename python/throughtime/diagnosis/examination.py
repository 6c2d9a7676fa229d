"""The figures of a model on some data, from which the rules of `diagnose` judge; arrays per timestep are not kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._arguments import Array
from ..analysis.flow_result import GradientFlow, StackFlow, combined_log10_norm
from ..layers.embedding import Embedding
from ..layers.layer import Layer
from ..recurrent import Recurrent
from .activity import Dead, dead_units, saturated_shares
from .course import Course, courses
from .leaves import Leaf, run

DEEP = 3.0  # log10 of a factor over depth that is a disease


class Part(NamedTuple):
    """The figures of an innermost layer.

    Attributes
    ----------
    place : str
        Its place in the model, such as ``"0.sublayer"``; of a layer by itself the name of its class.
    layer : Layer
    courses : list of Course
        The ways back in time, by row; empty if the layer is not recurrent, or its gradient is not finite.
    dead : dict of str to Dead
        ReLU units, by row.
    saturated : dict of str to float
        The share of saturated values, by gate or activation.
    log10_levels : (num_layers,) array
        log10 of the norm of the gradient of every layer inside a recurrent layer, over all timesteps.
    """

    place: str
    layer: Layer
    courses: list[Course]
    dead: dict[str, Dead]
    saturated: dict[str, float]
    log10_levels: Array


class Examination(NamedTuple):
    """The figures of one forward and one backward pass.

    Attributes
    ----------
    layer : Layer
    flow : GradientFlow
        Of the model; a `StackFlow` unless the model is one recurrent layer.
    parts : list of Part
        The innermost layers, in their order.
    log10_loss : float
        log10 of the norm of the loss's own gradient; -inf if there is none.
    log10_boundaries : (n,) array
        log10 of the norm of the gradient of what enters each layer of a stack, and of the output, over all timesteps.
        An `Embedding` takes integers, which have no gradient, and is left out. Empty for a recurrent layer by itself.
    fault_place : str
        The place at which the forward stopped being finite: of a layer, ``"input"``, or ``"stack"`` between layers.
    """

    layer: Layer
    flow: GradientFlow
    parts: list[Part]
    log10_loss: float
    log10_boundaries: Array
    fault_place: str

    @property
    def log10_depth(self) -> float:
        """log10 of the factor from the gradient of the output to that of the input, of a stack of several layers."""
        return factor(self.log10_boundaries) if len(self.log10_boundaries) > 2 else 0.0

    @property
    def depths(self) -> list[float]:
        """The same of the stack, and of the layers inside each recurrent layer."""
        return [self.log10_depth, *(factor(part.log10_levels) for part in self.parts)]

    def as_one(self, place: str) -> Examination:
        """With all parts as one: the layers of a stack that stands for the layers inside one recurrent layer."""
        courses = [course for part in self.parts for course in part.courses]
        dead = {f"{part.place} {name}": own for part in self.parts for name, own in part.dead.items()}
        saturated = {f"{part.place} {name}": own for part in self.parts for name, own in part.saturated.items()}
        whole = Part(place, self.layer, courses, dead, saturated, self.log10_boundaries[1:])
        return self._replace(parts=[whole])


def factor(norms: Array) -> float:
    """log10 of the first norm over the last; 0 if either is zero or not finite."""
    if not len(norms) or not np.isfinite(norms[[0, -1]]).all():
        return 0.0
    return float(norms[0] - norms[-1])


def examine(layer: Layer, x: Any, d_output: Any, state: Any, lengths: Any) -> Examination:
    """Run a model forward and backward, as `gradient_flow` does, and measure."""
    flow, leaves = run(layer, x, d_output, state, lengths)
    loss = _log10_loss(layer, flow)
    parts = [
        Part(
            leaf.place,
            leaf.layer,
            [] if leaf.flow is None else courses(leaf.flow, loss),
            dead_units(leaf),
            saturated_shares(leaf),
            np.zeros(0) if leaf.flow is None else _levels(leaf.flow, leaf.layer),
        )
        for leaf in leaves
    ]
    boundaries = flow.depth_log10_norm if isinstance(flow, StackFlow) else np.zeros(0)
    skipped = int(isinstance(leaves[0].layer, Embedding))
    return Examination(layer, flow, parts, loss, boundaries[skipped:], _fault_place(flow.fault or "", leaves))


def _log10_loss(layer: Layer, flow: GradientFlow) -> float:
    if isinstance(flow, StackFlow):
        return float(flow.depth_log10_norm[-1])
    assert isinstance(layer, Recurrent)
    ways = [flow._way(row) for row in range(len(flow.names))][-layer.num_directions :]
    return max((float(way[0]) for way in ways if way.size), default=-np.inf)


def _fault_place(fault: str, leaves: list[Leaf]) -> str:
    if not fault or fault.startswith("x is"):
        return "input"
    return next((leaf.place for leaf in leaves if _is_broken(leaf.tape)), "stack")


def _is_broken(tape: Any) -> bool:
    own = getattr(tape, "_fault", None)
    return not np.isfinite(tape.output).all() if own is None else own() is not None


def _levels(flow: GradientFlow, layer: Layer) -> Array:
    """The norm of every layer inside a recurrent layer, over its directions and timesteps."""
    rows = combined_log10_norm(flow.log10_norm, axis=1)
    assert isinstance(layer, Recurrent)
    return combined_log10_norm(rows.reshape(layer.num_layers, -1), axis=1)
