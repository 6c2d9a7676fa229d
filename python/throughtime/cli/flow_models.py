"""The models of `throughtime flow`: cells and stacks, with default and with good initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import throughtime as tt
from throughtime.analysis.flow_result import GradientFlow, StackFlow

INPUT_SIZE = 32


class Sizes(NamedTuple):
    """Units of each layer, recurrent layers of a stack, and the seed of its weights."""

    hidden: int
    layers: int
    seed: int


def _residual(sizes: Sizes) -> tt.Sequential:
    return _stack(sizes, [tt.ResidualBlock(layer, sizes.hidden, norm=None) for layer in _lstms(sizes)])


def _plain(sizes: Sizes) -> tt.Sequential:
    return _stack(sizes, _lstms(sizes))


def _stack(sizes: Sizes, layers: list[Any]) -> tt.Sequential:
    return tt.Sequential(tt.Linear(INPUT_SIZE, sizes.hidden, seed=[sizes.seed, 0]), *layers)


def _lstms(sizes: Sizes) -> list[tt.LSTM]:
    return [tt.LSTM(sizes.hidden, sizes.hidden, seed=[sizes.seed, place]) for place in range(1, sizes.layers + 1)]


MODELS: dict[str, Callable[[Sizes], Any]] = {
    "RNN": lambda sizes: tt.RNN(INPUT_SIZE, sizes.hidden, seed=sizes.seed),
    "GRU": lambda sizes: tt.GRU(INPUT_SIZE, sizes.hidden, seed=sizes.seed),
    "LSTM": lambda sizes: tt.LSTM(INPUT_SIZE, sizes.hidden, seed=sizes.seed),
    "LayerNorm LSTM": lambda sizes: tt.LSTM(INPUT_SIZE, sizes.hidden, layer_norm=True, seed=sizes.seed),
    "plain stack": _plain,
    "residual stack": _residual,
}
WEIGHTS = ("default", "good")


def build(name: str, weights: str, sizes: Sizes, steps: int) -> Any:
    """One of the models, with weights for sequences of this many steps."""
    model = MODELS[name](sizes)
    if weights == "good":
        tt.init.apply(model, "good", max_steps=max(2, steps), seed=sizes.seed)
    return model


def lowest(flow: GradientFlow) -> GradientFlow:
    """The flow inside the first recurrent layer."""
    if not isinstance(flow, StackFlow):
        return flow
    return next(inner for inner in flow.layers if inner is not None)
