"""Ways to copy a value, and small layers to copy."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

import throughtime as tt

F = 4
LAYERS = {
    "RNN": lambda: tt.RNN(F, F, seed=0),
    "LSTM": lambda: tt.LSTM(F, F, 2, dropout=0.5, bidirectional=True, seed=0),
    "Linear": lambda: tt.Linear(F, F, seed=0),
    "LayerNorm": lambda: tt.LayerNorm(F),
    "MLP": lambda: tt.MLP(F, 6, seed=0),
    "SelfAttention": lambda: tt.SelfAttention(F, 2, seed=0),
    "ResidualBlock": lambda: tt.ResidualBlock(tt.GRU(F, F, seed=0), F, norm="post"),
    "Sequential": lambda: tt.Sequential(
        tt.Linear(F, F, seed=0),
        tt.ResidualBlock(tt.Sequential(tt.LSTM(F, F, seed=1), tt.MLP(F, 5, seed=2)), F),
        tt.ResidualBlock(tt.SelfAttention(F, 2, seed=3), F, norm=None),
        tt.LayerNorm(F),
    ),
}


def by_joblib(value, **how):
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(value, file, **how)
    return joblib.load(io.BytesIO(file.getvalue()))


def out_of_band(value):
    """Pickle 5 with the arrays' memory sent separately, as read-only bytes."""
    buffers = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


def by_savez(value):
    """NumPy pickles an object that is not an array."""
    file = io.BytesIO()
    np.savez(file, value=value)
    file.seek(0)
    return np.load(file, allow_pickle=True)["value"].item()


COPIES = {f"pickle {k}": lambda value, k=k: pickle.loads(pickle.dumps(value, k)) for k in range(6)} | {
    "pickle 5, buffers": out_of_band,
    "deepcopy": copy.deepcopy,
    "savez": by_savez,
    "joblib": by_joblib,
    "joblib, packed": lambda value: by_joblib(value, compress=3),
}


def numbers(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
