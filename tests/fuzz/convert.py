"""Fuzz target: layers and weights from ONNX and Keras are converted, or raise TypeError or ValueError."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
from choices import Choices, any_array, any_value

import throughtime as tt

TEXTS = [b"forward", b"reverse", b"bidirectional", b"Tanh", b"Relu", b"Sigmoid", b"", b"\xff"]
NUMBERS = [0, 1, 2, -1, 2**62]


def attribute(chosen: Choices) -> onnx.AttributeProto:
    """Any attribute, with a value in some of its fields; only protobuf's own types fit into them."""
    names = [
        "direction",
        "activations",
        "clip",
        "layout",
        "linear_before_reset",
        "input_forget",
        "hidden_size",
        "unknown",
    ]
    made = onnx.AttributeProto(name=chosen.of(names), type=chosen.below(8))
    while chosen.below(2):
        match chosen.below(5):
            case 0:
                made.s = chosen.of(TEXTS)
            case 1:
                made.i = chosen.of(NUMBERS)
            case 2:
                made.f = chosen.of([0.0, 0.5, float("nan")])
            case 3:
                made.strings.append(chosen.of(TEXTS))
            case 4:
                made.floats.append(0.5)
    return made


def seeds() -> list[bytes]:
    return [bytes(60), bytes(range(60)), b"\1" * 60]


def check(data: bytes) -> None:
    chosen = Choices(data)
    with suppress(TypeError, ValueError, MemoryError):
        (_from_onnx if chosen.below(2) == 0 else _from_keras)(chosen)


def _from_keras(chosen: Choices) -> None:
    units, inputs = chosen.below(4), chosen.below(4)
    kind = chosen.of(["LSTM", "GRU", "SimpleRNN", "RNN", "Dense", 3, None])
    gates = {"LSTM": 4, "GRU": 3}.get(kind, 1)
    shapes = [(inputs, gates * units), (units, gates * units), (gates * units,), (2, gates * units)]
    weights = [np.zeros(shape, np.float32) for shape in shapes[: chosen.below(5)]] * chosen.of([1, 1, 2])
    if chosen.rarely() and weights:
        weights[chosen.below(len(weights))] = any_value(chosen)
    tt.convert.from_keras(kind, any_value(chosen) if chosen.rarely() else weights)


def _from_onnx(chosen: Choices) -> None:
    kind = chosen.of(["LSTM", "GRU", "RNN", "Conv", ""])
    gates = {"LSTM": 4, "GRU": 3}.get(kind, 1)
    units, inputs, directions = chosen.below(4), chosen.below(4), chosen.of([1, 1, 2, 0])
    shapes = {
        "W": (directions, gates * units, inputs),
        "R": (directions, gates * units, units),
        "B": (directions, 2 * gates * units),
        "P": (directions, 3 * units),
    }
    initializers = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    while chosen.rarely():
        initializers[chosen.of(list(shapes))] = any_array(chosen) if chosen.below(2) else any_value(chosen)
    attributes = [onnx.helper.make_attribute("hidden_size", units)]
    while chosen.rarely():
        attributes.append(attribute(chosen))
    given = ["X", "W", "R", chosen.of(["B", "", "missing"]), "", "", "", chosen.of(["", "P", "missing"])]
    node = onnx.NodeProto(op_type=kind, attribute=attributes, input=given[: chosen.of([8, 8, 8, 4, 3, 2, 0])])
    layer = tt.convert.from_onnx(node, initializers)
    layer(np.zeros((2, 1, layer.input_size), np.dtype(layer.dtype)))
