"""The gates of a forward, after their activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._arguments import Array
from ..layers import add_layer_norm as layer_norm
from .architecture import EPS
from .record import Record


def gate_values(record: Record) -> Array:
    """Every gate, (L*D, T, B, G*H), from the values that the cells saved; zero in the padding."""
    described = record.architecture
    gates = np.empty((described.count, *record.sizes, described.gate_rows), record.dtype)
    for index, own in enumerate(gates):
        if "weight_ln_ih" in described.parameter_names:
            own[...] = _normalised(record, index)
        elif not record.saved_values(index):  # an RNN's state is its activation
            own[...] = record.states[0][index, 1:-1]
        else:
            by_gate = record.saved_units(index)[:, :, : described.gates]
            own.reshape(by_gate.shape)[...] = by_gate
    valid = record.valid()
    if valid is not None:
        gates[:, ~valid] = 0
    return gates


@np.errstate(all="ignore")  # saved values of the padding may be anything
def _normalised(record: Record, index: int) -> Array:
    """Recompute the gates (T, B, G*H) of a layer-normalised cell from both products, which it saves."""
    described = record.architecture
    own = {name: record.parameters[full] for name, full in described.own_parameters[index].items()}
    shape = (*record.sizes, described.gates, described.hidden_size)
    parts = []
    for product, name in zip(np.split(record.saved_units(index), 2, axis=2), ("ih", "hh"), strict=True):
        rows, gain = product.reshape(-1, described.gate_rows), own[f"weight_ln_{name}"].astype(np.float64)
        normal = layer_norm.forward(rows.astype(np.float64), None, gain, np.zeros_like(gain), 1.0, EPS)[1]
        bias = own[f"bias_{name}"] if described.bias else np.zeros(described.gate_rows)
        parts.append((normal.reshape(shape), bias.astype(np.float64).reshape(shape[2:])))
    (x, bias_ih), (r, bias_hh) = parts
    gates = _ACTIVATED[described.cell.removesuffix("_layer_norm")](x, r, bias_ih, bias_hh)
    return gates.reshape(*record.sizes, described.gate_rows)


# The gates (T, B, G, H) of both parts of the pre-activations, and of their biases.


def _sigmoid(z: Array) -> Array:
    found: Array = np.reciprocal(1 + np.exp(-z))
    return found


def _rnn(activation: Callable[[Array], Array]) -> Callable[[Array, Array, Array, Array], Array]:
    return lambda x, r, bias_ih, bias_hh: activation(bias_ih + bias_hh + x + r)


def _gru(x: Array, r: Array, bias_ih: Array, bias_hh: Array) -> Array:
    x, r = x + bias_ih, r + bias_hh
    gates = _sigmoid(x + r)
    gates[:, :, 2] = np.tanh(x[:, :, 2] + gates[:, :, 0] * r[:, :, 2])
    return gates


def _lstm(x: Array, r: Array, bias_ih: Array, bias_hh: Array) -> Array:
    z = bias_ih + bias_hh + x + r
    gates = _sigmoid(z)
    gates[:, :, 2] = np.tanh(z[:, :, 2])
    return gates


_ACTIVATED = {
    "rnn_tanh": _rnn(np.tanh),
    "rnn_relu": _rnn(lambda z: np.maximum(z, 0)),
    "rnn_sigmoid": _rnn(_sigmoid),
    "gru": _gru,
    "lstm": _lstm,
}
