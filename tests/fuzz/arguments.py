"""Fuzz target: layers and their calls take their arguments, or raise one of the documented errors; no call crashes."""

from __future__ import annotations

import warnings
from contextlib import suppress

import numpy as np
from choices import Choices, any_value

import throughtime as tt

DOCUMENTED = (TypeError, ValueError, MemoryError, FloatingPointError)

RECURRENT = {
    "num_layers": [1, 2],
    "bias": [True, False],
    "batch_first": [False, True],
    "dropout": [0.0, 0.5],
    "bidirectional": [False, True],
    "zoneout": [0.0, 0.3],
    "weight_dropout": [0.0, 0.3],
    "dtype": ["float32", "float64"],
    "seed": [0],
    "layer_norm": [False, True],
}
LSTM = RECURRENT | {"proj_size": [0, 2], "peephole": [False, True], "zoneout": [0.0, (0.1, 0.2)]}
OTHERS = {
    "Linear": [3, 4],
    "LayerNorm": [3],
    "BatchNorm": [3],
    "MLP": [3, 4],
    "SelfAttention": [4, 2],
    "Embedding": [3, 4],
}


def seeds() -> list[bytes]:
    return [bytes(120), bytes(range(120)), b"\2\1" * 60]


def check(data: bytes) -> None:
    chosen = Choices(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(*DOCUMENTED):
            (_recurrent if chosen.below(4) else _other)(chosen)


def _given(chosen: Choices, valid):
    """A valid value, or now and then any other."""
    return any_value(chosen) if chosen.rarely() else valid


def _options(chosen: Choices, table) -> dict:
    return {
        name: any_value(chosen) if chosen.rarely() else chosen.of(values)
        for name, values in table.items()
        if chosen.below(3) == 0
    }


def _recurrent(chosen: Choices) -> None:
    kind = chosen.of(["LSTM", "GRU", "RNN"])
    table = LSTM if kind == "LSTM" else RECURRENT | {"nonlinearity": ["tanh", "relu"]} if kind == "RNN" else RECURRENT
    layer = getattr(tt, kind)(_given(chosen, 3), _given(chosen, 4), **_options(chosen, table))
    T, B = chosen.of([4, 1, 9]), chosen.of([2, 1, 0])
    x = np.full((B, T, 3) if layer.batch_first else (T, B, 3), 0.5, layer.dtype)
    forward = {
        "lengths": [None, [T] * B, [0] * B],
        "resets": [None, np.zeros((T, B), bool)],
        "training": [True, False],
        "output": ["all", "last"],
        "memory": ["full", "states", "checkpoint", 2],
        "masks": [None, {}],
        "state": [None],
    }
    x = _given(chosen, x)
    if chosen.rarely():
        layer(x, **{name: value for name, value in _options(chosen, forward).items() if name in ("state", "lengths")})
    tape = layer.forward(x, **_options(chosen, forward))
    _read(tape, chosen.of(["gates", "hidden", "cell", "final_state", "nbytes", "masks"]))
    backward = {
        "d_final_state": [None, tape.final_state],
        "d_cell": [None],
        "timesteps": [(), "hidden", ("hidden", "cell", "gates", "products", "parameter_norms")],
        "truncate": [None, 1, 2],
        "clip": [None, 1.0],
        "check_finite": [False, True],
    }
    grads = tape.backward(_given(chosen, np.ones_like(tape.output)), **_options(chosen, backward))
    _read(grads, chosen.of(["hidden", "cell", "gates", "input", "parameter_norms", "clipped"]))
    flow = {
        "d_output": ["last", np.ones_like(tape.output)],
        "state": [None],
        "lengths": [None, [T] * B],
        "memory": ["full"],
    }
    tt.gradient_flow(layer, x, **_options(chosen, flow)).summary()


def _read(holder, name: str) -> None:
    """An array that is not there is an AttributeError that says why."""
    try:
        getattr(holder, name)
    except AttributeError as error:
        if not any(word in str(error) for word in ("not kept", "timesteps", "clip", "has no")):
            raise


def _other(chosen: Choices) -> None:
    kind = chosen.of(list(OTHERS))
    layer = getattr(tt, kind)(*(_given(chosen, size) for size in OTHERS[kind]))
    if chosen.rarely():
        layer = tt.ResidualBlock(layer, _given(chosen, 3), **_options(chosen, {"norm": ["pre", "post", None]}))
    if chosen.rarely():
        layer = tt.Sequential(layer, any_value(chosen)) if chosen.rarely() else tt.Sequential(layer, layer)
    shape = (4, 2) if kind == "Embedding" else (4, 2, OTHERS[kind][0])
    x = np.zeros(shape, np.int64 if kind == "Embedding" else np.float32)
    tape = layer.forward(_given(chosen, x))
    tape.backward(_given(chosen, np.ones_like(tape.output)))
    logits = _given(chosen, np.zeros((4, 3), np.float32))
    tt.cross_entropy(logits, _given(chosen, np.arange(4) % 3))
    tt.mse(logits, _given(chosen, np.zeros((4, 3), np.float32)))
    tt.clip_grad_norm({"a": logits, "b": _given(chosen, np.ones(3))}, _given(chosen, 1.0))
    tt.optim.Adam(_given(chosen, 0.1)).step({"a": logits}, {"a": _given(chosen, np.ones((4, 3), np.float32))})
