"""Pickles of earlier versions load. tests/layers.pickle was written by

    PYTHONPATH=<that version> python tests/test_pickles.py

when `layers`, below, were in other modules.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt

WRITTEN = Path(__file__).with_name("layers.pickle")


def layers():
    """Layers by name: every class, and every option of the recurrent ones."""
    own = {"zoneout": 0.1, "weight_dropout": 0.1, "dtype": "float64", "seed": 0}
    made = {
        "RNN": tt.RNN(2, 2, nonlinearity="relu", bidirectional=True, **own),
        "GRU": tt.GRU(2, 2, 2, reset_after=False, batch_first=True, dropout=0.5, **own),
        "LSTM": tt.LSTM(2, 3, proj_size=2, reverse=True, **own),
        "peephole": tt.LSTM(2, 2, peephole=True, **own),
        "layer_norm": tt.LSTM(2, 2, layer_norm=True, bias=False, **own),
        "Sequential": tt.Sequential(
            tt.Embedding(3, 2, seed=0),
            tt.ResidualBlock(tt.LSTM(2, 2, seed=1), 2),
            tt.Linear(2, 2, seed=2),
            tt.MLP(2, 2, "gelu", seed=3),
            tt.SelfAttention(2, 1, seed=4),
            tt.BatchNorm(2),
            tt.LayerNorm(2),
            tt.Tanh(),
        ),
        "ReLU": tt.ReLU(dtype="float64"),
        "Sigmoid": tt.Sigmoid(dtype="float64"),
        "GELU": tt.GELU(dtype="float64"),
    }
    for name in ("RNN", "GRU", "LSTM"):  # attributes that a call sets are pickled too
        made[name](np.ones((2, 1, 2)))
    return made


def answers(layer, x):
    """Results of a forward with masks from the layer's generator, and of its backward."""
    tape = layer.forward(x)
    grads = tape.backward(np.ones_like(tape.output))
    return [tape.output, *([] if grads.input is None else [grads.input]), *grads.parameters.values()]


@pytest.mark.parametrize("name", layers())
def test_pickles_of_an_earlier_version_load(name):
    loaded, made = pickle.loads(pickle.loads(WRITTEN.read_bytes())[name]), layers()[name]
    assert type(loaded) is type(made)
    assert repr(loaded) == repr(made)
    assert list(loaded.parameters) == list(made.parameters)
    x = np.array([[[0], [2]], [[1], [1]]])[:, :, 0] if name == "Sequential" else np.arange(8.0).reshape(2, 2, 2) / 8
    copy = pickle.loads(pickle.dumps(loaded))
    for ours, theirs, copied in zip(answers(loaded, x), answers(made, x), answers(copy, x), strict=True):
        assert ours.tobytes() == theirs.tobytes() == copied.tobytes()


def test_flows_of_an_earlier_version_load():
    flow = pickle.loads(pickle.loads(WRITTEN.read_bytes())["flow"])
    assert isinstance(flow, type(tt.gradient_flow(tt.RNN(1, 1), np.ones((2, 1, 1), np.float32))))
    assert "layer 0" in flow.summary()


if __name__ == "__main__":
    made = layers()
    found = {name: pickle.dumps(layer, protocol=4) for name, layer in made.items()}
    found["flow"] = pickle.dumps(tt.gradient_flow(tt.RNN(2, 2, seed=0), np.ones((3, 1, 2), np.float32)), protocol=4)
    WRITTEN.write_bytes(pickle.dumps(found, protocol=4))
