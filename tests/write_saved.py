"""Writes what this version of the library saves to tests/saved/<version>, which test_saved_versions.py reads for ever:

    PYTHONPATH=python python tests/write_saved.py 0.1.0

Run it once for each release, before its tag, and commit the folder. A folder of a released version never changes. It
contains

- a file for each of `layers`, below, by ``layer.save``;
- ``pickles.pickle``: a pickle for each of `pickled`, by name;
- a file for each of `optimizers`, with its ``state_dict``;
- ``model``: what ``throughtime train --save`` writes;
- ``results.npz``: the outputs of the layers, in inference, and in training, where they draw random masks.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np

import throughtime as tt
from throughtime import _saved

SAVED = Path(__file__).with_name("saved")
TEXT = "to be or not to be, that is the question\n" * 8


def layers():
    """Layers by name: every kind, and every option of the recurrent ones."""
    own = {"zoneout": 0.25, "weight_dropout": 0.25, "dtype": "float64", "seed": 0}
    return {
        "RNN": tt.RNN(2, 2, nonlinearity="relu", bidirectional=True, **own),
        "RNN-layer-norm": tt.RNN(2, 2, nonlinearity="sigmoid", layer_norm=True, **own),
        "GRU": tt.GRU(2, 2, 2, reset_after=False, batch_first=True, dropout=0.5, **own),
        "GRU-layer-norm": tt.GRU(2, 2, layer_norm=True, **own),
        "LSTM": tt.LSTM(2, 3, proj_size=2, reverse=True, **own),
        "LSTM-peephole": tt.LSTM(2, 2, peephole=True, **{**own, "zoneout": (0.25, 0.5)}),
        "LSTM-layer-norm": tt.LSTM(2, 2, layer_norm=True, bias=False, **own),
        "Sequential": tt.Sequential(
            tt.Embedding(3, 4, seed=0),
            tt.ResidualBlock(tt.LSTM(4, 4, zoneout=0.25, seed=1), 4),
            tt.ResidualBlock(tt.Linear(4, 4, seed=2), 4, norm="post", normalisation="batch", branch_scale=0.5),
            tt.ResidualBlock(tt.SelfAttention(4, 2, window=3, seed=4), 4, norm=None),
            tt.MLP(4, 2, "gelu", seed=3),
            tt.BatchNorm(4),
            tt.LayerNorm(4),
            tt.Sequential(tt.Tanh(), tt.Sigmoid(), tt.ReLU(), tt.GELU()),
        ),
    }


def input_of(layer):
    """An input (T, B, F) for one of `layers`."""
    steps, batch = np.arange(6)[:, None], np.arange(2)
    if isinstance(layer, tt.Sequential):
        return (steps + batch) % 3
    return np.sin(steps[..., None] + 2 * batch[:, None] + 3 * np.arange(2.0))


def trained(optimizer):
    """The optimiser after two steps."""
    for step in (1, 2):
        optimizer.step({"weight": np.zeros((2, 3), np.float32)}, {"weight": np.full((2, 3), step, np.float32)})
    return optimizer


def optimizers():
    """Optimisers by name, after two steps."""
    made = tt.optim.SGD(0.1, momentum=0.9), tt.optim.Adam(0.1, (0.8, 0.9)), tt.optim.AdamW(0.1, weight_decay=0.5)
    return {type(optimizer).__name__: trained(optimizer) for optimizer in made}


def pickled():
    """What later versions read from a pickle, by name."""
    gru, x = tt.GRU(2, 2, seed=0), np.ones((3, 1, 2), np.float32)
    tape = gru.forward(x)
    return {
        **layers(),
        **optimizers(),
        "flow": tt.gradient_flow(gru, x),
        "gradients": tape.backward(np.ones_like(tape.output)),
        "diagnosis": tt.diagnose(gru, x),
    }


def results():
    """The outputs of every layer, of the first forward in inference and in training."""
    found = {}
    for name, layer in layers().items():
        x = input_of(layer)
        found[name] = layer.forward(x, training=False).output
        found[f"{name}, training"] = layer.forward(x).output
    return found


def write_model(folder):
    """A character model of a short text."""
    from typer.testing import CliRunner

    from throughtime.cli import app

    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "text.txt")
        text.write_text(TEXT, encoding="utf-8")
        options = {"hidden": 3, "layers": 2, "steps": 2, "batch": 2, "window": 8, "sample-length": 0}
        options |= {"save": folder, "plot": text.with_suffix(".png")}
        words = [f"--{name}={value}" for name, value in options.items()]
        result = CliRunner().invoke(app, ["train", str(text), *words])
    assert result.exit_code == 0, result.output


def write(folder):
    """Everything that the first lines of this file list."""
    folder.mkdir(parents=True)
    for name, layer in layers().items():
        layer.save(folder / f"{name}.npz")
    pickles = {name: pickle.dumps(value, protocol=4) for name, value in pickled().items()}
    (folder / "pickles.pickle").write_bytes(pickle.dumps(pickles, protocol=4))
    for name, optimizer in optimizers().items():
        np.savez(folder / f"{name}.npz", **optimizer.state_dict())
    np.savez(folder / "results.npz", **results())
    write_model(folder / "model")


if __name__ == "__main__":
    (version,) = sys.argv[1:]
    _saved.__version__ = version  # that of the release, which its tag will give it
    write(SAVED / version)
