"""What a call is apart from its tensors, as text: operators in a compiled graph take it as a constant."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import Any

import torch

from .. import recurrent
from ..recurrent import Recurrent
from ..recurrent.layers import check_memory
from .places import PLACES


class Plan:
    """A layer without parameters, and what the backward is to find.

    Attributes
    ----------
    layer : Recurrent
        Of the NumPy interface; parameters are given to each call.
    place : Cpu or Cuda
        Where its calls run.
    memory : str, int or None
        As `Recurrent.forward` takes it; None where no backward follows.
    names : tuple of str
        Of the parameters, in the order in which calls hand them over.
    states : int
        2 for the LSTM, else 1.
    """

    def __init__(
        self, kind: str, options: dict[str, Any], device: str, dtype: str, batch_first: bool, memory: str | int | None
    ) -> None:
        self.memory = None if memory is None else check_memory(memory)
        self.place = PLACES[device]
        self.layer: Recurrent = _HOLLOW[kind](**options, batch_first=batch_first)
        self.layer.to(self.place.backend().device, dtype=dtype)
        self.names = tuple(self.layer._shapes_of_parameters)
        self.states = len(self.layer._state_names)

    def mask_names(self, count: int) -> list[str]:
        """The names of so many masks, in the order in which calls hand them over."""
        return list(self.layer._mask_shapes((1, 1))) if count else []


@lru_cache(maxsize=1024)
def plan_of(text: str) -> Plan:
    """The plan that a text made by `call_text` says."""
    return Plan(*ast.literal_eval(text))


def layer_text(kind: str, options: dict[str, Any]) -> str:
    """Of a layer, the part that stays from call to call."""
    return f"{kind!r}, {options!r}"


def call_text(layer: str, dtype: torch.dtype, batch_first: bool, memory: str | int | None, device: str = "cpu") -> str:
    """A literal that `plan_of` reads, of what `layer_text` gave."""
    return f"({layer}, {device!r}, {str(PLACES[device].computes_in(dtype))[6:]!r}, {batch_first!r}, {memory!r})"


def _hollow(layer: type[Recurrent]) -> type[Recurrent]:
    """The same layer, with no memory for parameters."""

    def _initialise(self: Recurrent) -> None:
        self.parameters = {}

    return type(layer.__name__, (layer,), {"_initialise": _initialise})


_HOLLOW: dict[str, Any] = {layer.__name__: _hollow(layer) for layer in (recurrent.RNN, recurrent.GRU, recurrent.LSTM)}
