"""The gates of a forward, after their activations."""

from __future__ import annotations

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
    """Recompute the gates (T, B, 4H) of a layer-normalised LSTM from both products, which the cell saves."""
    described = record.architecture
    own = {name: record.parameters[full] for name, full in described.own_parameters[index].items()}
    shape, gates = (*record.sizes, described.gate_rows), described.gates
    saved = record.saved_units(index).astype(np.float64)
    z = sum((own[name] for name in ("bias_ih", "bias_hh") if described.bias), np.zeros(described.gate_rows))
    for part, name in ((saved[:, :, :gates], "weight_ln_ih"), (saved[:, :, gates:], "weight_ln_hh")):
        rows, gain = part.reshape(-1, described.gate_rows), own[name].astype(np.float64)
        z = z + layer_norm.forward(rows, None, gain, np.zeros_like(gain), 1.0, EPS)[1].reshape(shape)
    by_gate = z.reshape(*record.sizes, gates, -1)
    found: Array = np.reciprocal(1 + np.exp(-by_gate))
    found[:, :, 2] = np.tanh(by_gate[:, :, 2])
    return found.reshape(shape)
