"""How many units of a layer never fire, and how many values of its gates and activations are saturated."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._arguments import Array
from ..layers.activations import ReLU, Sigmoid, Tanh
from ..layers.mlp import MLP
from ..recurrent import Recurrent
from .leaves import Leaf

EDGE = 0.01  # of the range of an activation: at 0.01 a sigmoid has 4 % of its largest slope, a tanh at 0.99 has 2 %
ROWS = 32  # fewer do not tell: a healthy unit, on for half of its inputs, is off for all of them once in 2^32
_OPEN = 0.9  # of a forget gate: the cell keeps its memory
_LAYERS: dict[type, str] = {ReLU: "relu", Tanh: "tanh", Sigmoid: "sigmoid"}


class Dead(NamedTuple):
    """ReLU units that are zero for every input.

    Attributes
    ----------
    share : float
    units : int
        All units.
    rows : int
        Inputs: steps of all sequences.
    """

    share: float
    units: int
    rows: int


def dead_units(leaf: Leaf) -> dict[str, Dead]:
    """By row of a layer with ReLUs; empty for other layers, and for fewer than `ROWS` inputs."""
    return {
        name: Dead(float((values == 0).all(axis=0).mean()), values.shape[1], len(values))
        for name, kind, values in _activations(leaf)
        if kind == "relu" and len(values) >= ROWS
    }


def saturated_shares(leaf: Leaf) -> dict[str, float]:
    """By gate or activation, the share of values within `EDGE` of an end of its range.

    Not counted is what holds a memory: a forget gate or an update gate z near 1, and an LSTM's input gate near 0 while
    the forget gate is above 0.9. `tt.init.chrono` sets gates so.
    """
    if isinstance(leaf.layer, Recurrent) and leaf.layer.architecture.gates > 1:
        return _of_gates(leaf.layer, leaf)
    found: dict[str, float] = {}
    for name, kind, values in _activations(leaf):
        if kind != "relu" and values.size:
            found[name] = float(_ends(values, kind).mean())
    return found


def _of_gates(layer: Recurrent, leaf: Leaf) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, values in _rows(leaf):
        gates = values.reshape(len(values), layer.architecture.gates, layer.hidden_size)
        if gates.size:
            prefix = f"{name}, " if name else ""
            own = dict(zip(layer.architecture.gate_names, gates.swapaxes(0, 1), strict=True))
            found |= {f"{prefix}gate {gate}": float(_saturated(gate, own).mean()) for gate in own}
    return found


def _saturated(gate: str, gates: dict[str, Array]) -> Array:
    """Where the values of a gate count; `gates` has the layer's gates by letter."""
    own = gates[gate]
    if gate in "fz":
        return own < EDGE
    if gate == "i":
        held = (own < EDGE) & (gates.get("f", 1 - own) > _OPEN)
        return _ends(own, "sigmoid") & ~held
    return _ends(own, "tanh" if gate in "gn" else "sigmoid")


def _ends(values: Array, kind: str) -> Array:
    """Where a sigmoid or a tanh is near an end of its range."""
    near: Array = (np.abs(values) > 1 - EDGE) if kind == "tanh" else (values < EDGE) | (values > 1 - EDGE)
    return near


def _activations(leaf: Leaf) -> list[tuple[str, str, Array]]:
    """The name, kind and values (rows, units) of the activations of a layer without gates; padding left out."""
    layer, tape = leaf.layer, leaf.tape
    if isinstance(layer, Recurrent):
        if layer.architecture.gates > 1:
            return []
        kind = layer.architecture.cell.split("_")[1]
        return [(name, kind, values) for name, values in _rows(leaf)]
    if isinstance(layer, MLP):
        if layer.activation == "gelu":
            return []
        hidden: Array = tape._hidden
        return [("", layer.activation, hidden if leaf.valid is None else hidden[leaf.valid.reshape(-1)])]
    for own, kind in _LAYERS.items():
        if isinstance(layer, own):
            output: Any = tape.output if leaf.valid is None else tape.output[leaf.valid]
            return [("", kind, output.reshape(-1, output.shape[-1]))]
    return []


def _rows(leaf: Leaf) -> list[tuple[str, Array]]:
    """The gates (rows, G*H) of each layer and direction of a recurrent layer; padding left out."""
    gates, valid, flow = leaf.tape.gates, leaf.tape.record.valid(), leaf.flow
    assert flow is not None
    names = flow.names if len(flow.names) > 1 else ("",)
    each = [own.reshape(-1, own.shape[-1]) for own in gates]
    return [(name, own if valid is None else own[valid.reshape(-1)]) for name, own in zip(names, each, strict=True)]
