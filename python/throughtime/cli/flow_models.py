"""What `throughtime flow` compares: cells and stacks, each with default and with good initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import throughtime as tt
from throughtime.analysis.flow_result import GradientFlow, StackFlow

INPUT_SIZE = 32


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
        tt.init.apply(model, "good", max_steps=max(2, steps), seed=seed)
    return model


def lowest(flow: GradientFlow) -> GradientFlow:
    """The flow inside the first recurrent layer."""
    if not isinstance(flow, StackFlow):
        return flow
    return next(inner for inner in flow.layers if inner is not None)
