"""What `throughtime flow` compares: cells and stacks, each with default and with good initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import throughtime as tt
from throughtime.flow_result import GradientFlow, StackFlow

INPUT_SIZE = 32
_LN_GAIN = 0.5  # with chrono biases gamma is 0.9988 to 1.0005: random input, 64 and 256 units, 1000 steps, two seeds


def _residual(hidden: int, layers: int, seed: int) -> tt.Sequential:
    return _stack(hidden, seed, [tt.ResidualBlock(layer, hidden, norm=None) for layer in _lstms(hidden, layers, seed)])


def _plain(hidden: int, layers: int, seed: int) -> tt.Sequential:
    return _stack(hidden, seed, _lstms(hidden, layers, seed))


def _stack(hidden: int, seed: int, layers: list[Any]) -> tt.Sequential:
    return tt.Sequential(tt.Linear(INPUT_SIZE, hidden, seed=[seed, 0]), *layers)


def _lstms(hidden: int, layers: int, seed: int) -> list[tt.LSTM]:
    return [tt.LSTM(hidden, hidden, seed=[seed, place]) for place in range(1, layers + 1)]


MODELS: dict[str, Callable[[int, int, int], Any]] = {  # of units, layers of a stack, seed
    "RNN": lambda hidden, _, seed: tt.RNN(INPUT_SIZE, hidden, seed=seed),
    "GRU": lambda hidden, _, seed: tt.GRU(INPUT_SIZE, hidden, seed=seed),
    "LSTM": lambda hidden, _, seed: tt.LSTM(INPUT_SIZE, hidden, seed=seed),
    "LayerNorm LSTM": lambda hidden, _, seed: tt.LSTM(INPUT_SIZE, hidden, layer_norm=True, seed=seed),
    "plain stack": _plain,
    "residual stack": _residual,
}
WEIGHTS = ("default", "good")


def build(name: str, weights: str, hidden: int, layers: int, steps: int, seed: int) -> Any:
    """One of the models, with weights for sequences of so many steps."""
    model = MODELS[name](hidden, layers, seed)
    if weights == "good":
        set_good_weights(model, np.random.default_rng(seed), max(2, steps))
    return model


def lowest(flow: GradientFlow) -> GradientFlow:
    """The flow inside the first recurrent layer."""
    if not isinstance(flow, StackFlow):
        return flow
    return next(inner for inner in flow.layers if inner is not None)


def set_good_weights(layer: Any, rng: np.random.Generator, max_steps: float) -> None:
    """Orthogonal recurrent weights; gate biases that remember up to `max_steps` steps; other biases zero.

    Where LayerNorm follows W_hh h, its gain is a half. In stacks the recurrent layers are set, others left as they are.
    """
    if isinstance(layer, tt.Sequential):
        for inner in layer.layers:
            set_good_weights(inner, rng, max_steps)
    elif isinstance(layer, tt.ResidualBlock):
        set_good_weights(layer.sublayer, rng, max_steps)
    elif isinstance(layer, tt.RNN | tt.GRU | tt.LSTM):
        _set_recurrent(layer, rng, max_steps)


def _set_recurrent(layer: tt.RNN | tt.GRU | tt.LSTM, rng: np.random.Generator, max_steps: float) -> None:
    for name, array in layer.parameters.items():
        gates = array.shape[0] // layer.hidden_size
        if name.startswith("weight_hh"):
            array[...] = tt.init.orthogonal(array.shape, rng, gates=gates, dtype=array.dtype)
        elif name.startswith("weight_ln_hh"):
            array[...] = _LN_GAIN
        elif name.startswith("bias_ih") and gates > 1:
            array[...] = tt.init.chrono(
                array.shape, rng, max_steps, cell={3: "gru", 4: "lstm"}[gates], dtype=array.dtype
            )
        elif name.startswith("bias"):
            array[...] = 0
