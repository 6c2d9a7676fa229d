"""The gates of a forward pass, after their activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._arguments import Array
from ..layers import add_layer_norm as layer_norm
from .architecture import EPS
from .record import Record


def gate_values(record: Record) -> Array:
    """All gates, (L*D, T, B, G*H), from the values that the cells saved; zero in the padding."""
    described = record.architecture
    gates = np.empty((described.count, *record.sizes, described.gate_rows), record.dtype)
    for index, own in enumerate(gates):
        if described.cell.startswith("rnn") and not described.zoneouts["hidden"]:  # the state is the activation
            own[...] = record.states[0][index, 1:-1]
        elif "weight_ln_ih" in described.parameter_names:
            own[...] = _normalised(record, index)
        else:
            by_gate = record.saved_units(index)[:, :, : described.gates]
            own.reshape(by_gate.shape)[...] = by_gate
    valid = record.valid()
    if valid is not None:
        gates[:, ~valid] = 0
    return gates


@np.errstate(all="ignore")  # saved values of the padding may be anything
def _normalised(record: Record, index: int) -> Array:
    """Recompute the gates (T, B, G*H) of a layer-normalised cell from both products, which the cell saves."""
    described = record.architecture
    own = {name: record.parameters[full] for name, full in described.own_parameters[index].items()}
    saved, by_gate = (
        record.saved_units(index).astype(np.float64),
        (*record.sizes, described.gates, described.hidden_size),
    )
    parts = []
    for part, name in zip(np.split(saved, 2, axis=2), ("ih", "hh"), strict=True):
        rows, gain = part.reshape(-1, described.gate_rows), own[f"weight_ln_{name}"].astype(np.float64)
        normal = layer_norm.forward(rows, None, gain, np.zeros_like(gain), 1.0, EPS)[1]
        bias = own[f"bias_{name}"] if described.bias else np.zeros(described.gate_rows)
        parts.append((normal + bias).reshape(by_gate))
    return _activated(described.cell, *parts).reshape(*record.sizes, described.gate_rows)


def _activated(cell: str, x: Array, r: Array) -> Array:
    """The gates (T, B, G, H) from the input and the recurrent part of the pre-activations."""
    if cell.startswith("rnn"):
        return _ACTIVATIONS[cell.split("_")[1]](x + r)
    gates = _sigmoid(x + r)  # the third is g in the LSTM, n in the GRU
    gates[:, :, 2] = np.tanh(x[:, :, 2] + (gates[:, :, 0] if cell.startswith("gru") else 1) * r[:, :, 2])
    return gates


def _sigmoid(z: Array) -> Array:
    gates: Array = np.reciprocal(1 + np.exp(-z))
    return gates


def _relu(z: Array) -> Array:
    return np.maximum(z, 0)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": np.tanh, "relu": _relu, "sigmoid": _sigmoid}
