"""The kernels: each runs on random numbers and returns what it computes forward, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import throughtime as tt

from .inputs import Array, Draw

Tensors = dict[str, Array]


class Results(NamedTuple):
    """Values and gradients by name, and the length of the longest sum that they contain."""

    values: Tensors
    gradients: Tensors
    terms: int


class Kernel(NamedTuple):
    """How to run a kernel. `continuous`: a change of its inputs by a rounding changes no gradient by much."""

    run: Callable[[Draw], Results]
    recurrent: bool = False  # its float32 products have several precisions
    continuous: bool = True


def _recurrent(kind: Callable[..., Any], continuous: bool = True, **options: Any) -> Kernel:
    def run(draw: Draw) -> Results:
        T, B, I, H = draw.sizes.T, draw.sizes.B, draw.sizes.I, draw.sizes.H  # noqa: E741
        layer = draw.layer(kind, I, H, **options)
        if "weight_ln_hh_l0" in layer.parameters:  # with gains of 1 the recurrence is chaotic: it amplifies any error
            layer.parameters["weight_ln_hh_l0"][...] = 0.25
        rows = len(layer.parameters["weight_hh_l0"])
        return _of_layer(layer, draw.numbers(T, B, I), draw, I + rows + H + T * B)

    return Kernel(run, recurrent=True, continuous=continuous)


def _layer(kind: Callable[..., Any], *more: int) -> Kernel:
    """A layer of H features over (T, B, H), with its sums over features or rows."""

    def run(draw: Draw) -> Results:
        T, B, H = draw.sizes.T, draw.sizes.B, draw.sizes.H
        return _of_layer(draw.layer(kind, H, *more), draw.numbers(T, B, H), draw, 4 * H + T * B)

    return Kernel(run)


def _activation(kind: Callable[..., Any]) -> Kernel:
    def run(draw: Draw) -> Results:
        return _of_layer(draw.layer(kind), draw.numbers(draw.sizes.T * draw.sizes.B, draw.sizes.H), draw, 16)

    return Kernel(run)


def _of_layer(layer: Any, x: Array, draw: Draw, terms: int) -> Results:
    tape = layer.forward(x)
    grads = tape.backward(draw.numbers(*tape.output.shape))
    return Results({"output": tape.output}, {"input": grads.input, **grads.parameters}, terms)


def _linear(draw: Draw) -> Results:
    T, B, I, H = draw.sizes.T, draw.sizes.B, draw.sizes.I, draw.sizes.H  # noqa: E741
    return _of_layer(draw.layer(tt.Linear, I, H), draw.numbers(T, B, I), draw, I + H + T * B)


def _embedding(draw: Draw) -> Results:
    rows, H = draw.sizes.T * draw.sizes.B, draw.sizes.H
    tape = draw.layer(tt.Embedding, 4, H).forward(draw.rng.integers(0, 4, rows))
    grads = tape.backward(draw.numbers(rows, H))
    return Results({"output": tape.output}, dict(grads.parameters), rows)


def _cross_entropy(draw: Draw) -> Results:
    rows, classes = draw.sizes.T * draw.sizes.B, draw.sizes.H
    loss, d_logits = tt.cross_entropy(draw.numbers(rows, classes), draw.rng.integers(0, classes, rows))
    return Results({"loss": np.array([loss])}, {"logits": d_logits}, classes + rows)


def _mse(draw: Draw) -> Results:
    shape = draw.sizes.T * draw.sizes.B, draw.sizes.H
    loss, d_prediction = tt.mse(draw.numbers(*shape), draw.numbers(*shape))
    return Results({"loss": np.array([loss])}, {"prediction": d_prediction}, shape[0] * shape[1])


def _clip_grad_norm(draw: Draw) -> Results:
    gradient = draw.numbers(draw.sizes.T * draw.sizes.B, draw.sizes.H)
    norm = tt.clip_grad_norm({"parameter": gradient}, 1.0)
    return Results({"norm": np.array([norm])}, {"parameter": gradient}, gradient.size)


def _optimiser(make: Callable[[], Any]) -> Kernel:
    """The parameters after five steps, each of about ten roundings."""

    def run(draw: Draw) -> Results:
        rows, H = draw.sizes.T * draw.sizes.B, draw.sizes.H
        parameters, optimiser = {"parameter": draw.numbers(rows, H)}, make()
        for _ in range(5):
            optimiser.step(parameters, {"parameter": draw.numbers(rows, H)})
        return Results(parameters, {}, 50)

    return Kernel(run)


KERNELS = {
    "rnn_tanh": _recurrent(tt.RNN),
    "rnn_relu": _recurrent(tt.RNN, nonlinearity="relu", continuous=False),
    "rnn_sigmoid": _recurrent(tt.RNN, nonlinearity="sigmoid"),
    "rnn_tanh_layer_norm": _recurrent(tt.RNN, layer_norm=True),
    "gru": _recurrent(tt.GRU),
    "gru_original": _recurrent(tt.GRU, reset_after=False),
    "gru_layer_norm": _recurrent(tt.GRU, layer_norm=True),
    "lstm": _recurrent(tt.LSTM),
    "lstm_peephole": _recurrent(tt.LSTM, peephole=True),
    "lstm_projected": _recurrent(tt.LSTM, proj_size=9),
    "lstm_layer_norm": _recurrent(tt.LSTM, layer_norm=True),
    "linear": Kernel(_linear),
    "embedding": Kernel(_embedding),
    "layer_norm": _layer(tt.LayerNorm),
    "batch_norm": _layer(tt.BatchNorm),
    "self_attention": _layer(tt.SelfAttention, 2),
    "tanh": _activation(tt.Tanh),
    "sigmoid": _activation(tt.Sigmoid),
    "gelu": _activation(tt.GELU),
    "relu": _activation(tt.ReLU),
    "cross_entropy": Kernel(_cross_entropy),
    "mse": Kernel(_mse),
    "clip_grad_norm": Kernel(_clip_grad_norm),
    "sgd": _optimiser(lambda: tt.optim.SGD(lr=0.01, momentum=0.9)),
    "adam": _optimiser(tt.optim.Adam),
    "adamw": _optimiser(tt.optim.AdamW),
}
