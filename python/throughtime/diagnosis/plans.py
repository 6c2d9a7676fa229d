"""Changes that may cure a model, each applied to a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..init import apply
from ..layers.layer import Layer
from ..layers.residual import ResidualBlock
from ..layers.sequential import Sequential
from ..recurrent import LSTM, RNN, Recurrent

SEED = 0  # of every random number of a remedy
_GATED = ("chrono", "good")  # recipes that take `max_steps`
_SHARED = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "reverse", "dtype")


class Plan(NamedTuple):
    """A change.

    Attributes
    ----------
    text : str
        As a `Remedy` shows it.
    change : function of Layer, returning Layer
        Changes the copy that it is given, or makes another layer of it; ValueError if that is impossible.
    divisor : float
        By which x is divided.
    """

    text: str
    change: Callable[[Layer], Layer]
    divisor: float = 1.0


def recipes(names: Sequence[str], max_steps: int) -> list[Plan]:
    """Other initial weights of the whole model."""
    return [Plan(_call(name, max_steps), partial(_applied, recipe=name, max_steps=max_steps)) for name in names]


def residual(names: Sequence[str | None], max_steps: int) -> list[Plan]:
    """Residual additions around the layers of a stack, then other initial weights; None leaves those as they are."""
    around = "tt.ResidualBlock around each layer of the stack whose output has the size of its input"
    plans = []
    for name in names:
        then = "" if name is None else f", then {_call(name, max_steps, 'stack')}"
        plans.append(Plan(around + then, partial(_with_blocks, recipe=name, max_steps=max_steps)))
    return plans


def residual_layers(names: Sequence[str | None], max_steps: int) -> list[Plan]:
    """The layers inside a recurrent layer as a stack with residual additions, then other initial weights."""
    around = "a tt.Sequential of its single layers, with tt.ResidualBlock around each whose output has its input's size"
    plans = []
    for name in names:
        then = "" if name is None else f", then {_call(name, max_steps, 'stack')}"
        plans.append(Plan(around + then, partial(_apart, recipe=name, max_steps=max_steps)))
    return plans


def as_lstm(layer: RNN, max_steps: int) -> Plan:
    """An LSTM of the same sizes in place of an RNN, with weights for long memories."""
    lstm = LSTM(**{name: value for name, value in layer._config.items() if name in _SHARED}, seed=SEED)
    text = _call("good", max_steps, f"tt.{repr(lstm)[:-1]}, seed={SEED})")
    return Plan(text, lambda _: _applied(lstm, "good", max_steps))


def smaller_input(x: Any) -> list[Plan]:
    """Inputs of a standard deviation of 1, if theirs is larger."""
    spread = float(np.std(x, dtype=np.float64)) if np.issubdtype(x.dtype, np.floating) and x.size else 0.0
    if not np.isfinite(spread) or spread < 2:
        return []
    return [Plan(f"x / {spread:.3g}, its standard deviation", lambda layer: layer, float(f"{spread:.3g}"))]


def _with_blocks(layer: Layer, recipe: str | None, max_steps: int) -> Layer:
    """The stack with a residual addition around each layer that allows one, together with activations after it."""
    if not isinstance(layer, Sequential):
        raise ValueError(f"residual additions need a Sequential, got {layer!r}")
    groups = [_block(group) for group in _groups(layer)]
    if not any(isinstance(group, ResidualBlock) for group in groups):
        raise ValueError("no layer has as many outputs as inputs")
    stack = Sequential(*groups)
    return stack if recipe is None else _applied(stack, recipe, max_steps)


def _apart(layer: Layer, recipe: str | None, max_steps: int) -> Layer:
    """A stack of single layers with the parameters of those inside a recurrent layer, and residual additions."""
    if not isinstance(layer, Recurrent) or layer.num_layers < 2:
        raise ValueError(f"expected a recurrent layer of several layers, got {layer!r}")
    kind, singles = Layer._kinds[layer._kind], []
    sources, directions = layer.architecture.own_parameters, layer.num_directions
    for i in range(layer.num_layers):
        inputs = layer.output_size if i else layer.input_size
        single = kind(**{**layer._config, "input_size": inputs, "num_layers": 1, "dropout": 0.0})
        assert isinstance(single, Recurrent)
        targets = single.architecture.own_parameters
        for target, source in zip(targets, sources[i * directions : (i + 1) * directions], strict=True):
            for name, full in target.items():
                single.parameters[full][...] = layer.parameters[source[name]]
        singles.append(single)
    return _with_blocks(Sequential(*singles), recipe, max_steps)


def _groups(stack: Sequential) -> Iterator[list[Layer]]:
    """Each layer with the activations that follow it."""
    group: list[Layer] = []
    for layer in stack.layers:
        if group and not layer._elementwise:
            yield group
            group = []
        group.append(layer)
    yield group


def _block(group: list[Layer]) -> Layer:
    inner = group[0] if len(group) == 1 else Sequential(*group)
    size = group[0].input_size
    if size is None or size != group[0].output_size or not group[0].parameters or isinstance(group[0], ResidualBlock):
        return inner
    return ResidualBlock(inner, size)


def _applied(layer: Layer, recipe: str, max_steps: int) -> Layer:
    return apply(layer, recipe, max_steps=max(2, max_steps), seed=SEED)


def _call(recipe: str, max_steps: int, layer: str = "layer") -> str:
    steps = f", max_steps={max(2, max_steps)}" if recipe in _GATED else ""
    return f"tt.init.apply({layer}, {recipe!r}{steps}, seed={SEED})"
