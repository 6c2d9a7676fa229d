"""Fuzz target: tt.load of any file returns a layer or raises ValueError."""

from __future__ import annotations

import os
import tempfile

import throughtime as tt

PATH = os.path.join(tempfile.mkdtemp(), "layer.npz")


def seeds() -> list[bytes]:
    layers = [
        tt.LSTM(2, 3, seed=0),
        tt.GRU(2, 3, num_layers=2, bidirectional=True, zoneout=0.1, seed=0),
        tt.Sequential(tt.Embedding(3, 2, seed=0), tt.ResidualBlock(tt.RNN(2, 2, seed=0), 2), tt.BatchNorm(2)),
        tt.SelfAttention(2, 1, seed=0),
    ]
    found = []
    for layer in layers:
        layer.save(PATH)
        with open(PATH, "rb") as file:
            found.append(file.read())
    return found


def check(data: bytes) -> None:
    with open(PATH, "wb") as file:
        file.write(data)
    try:
        layer = tt.load(PATH)
    except ValueError:
        return
    repr(layer)
    assert all(array.dtype in ("float32", "float64") for array in layer.parameters.values())
