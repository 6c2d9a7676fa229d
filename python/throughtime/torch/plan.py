"""What a call is apart from its tensors, as text: operators in a compiled graph take it as a constant."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import Any

import torch

from ..recurrent.arguments import Checks, check_memory, describe
from .places import PLACES


class Plan:
    """A layer without parameters, the device that it runs on, and the memory mode of its backward.

    Attributes
    ----------
    architecture : Architecture
        Parameters are given to each call.
    place : Cpu or Cuda
        The device.
    checks : Checks
        Checks of the arrays on that device.
    memory : str, int or None
        As `Recurrent.forward` takes it; None where no backward follows.
    names : tuple of str
        Of the parameters, in the order in which calls hand them over.
    """

    def __init__(
        self, kind: str, options: dict[str, Any], device: str, dtype: str, batch_first: bool, memory: str | int | None
    ) -> None:
        self.memory = None if memory is None else check_memory(memory)
        self.place = PLACES[device]
        _, self.architecture = describe(kind, {**options, "batch_first": batch_first})
        backend = self.place.backend()
        self.checks = Checks(self.architecture, backend, backend.layer_dtype(dtype))
        self.names = tuple(self.architecture.parameter_shapes)

    def mask_names(self, count: int) -> list[str]:
        """The names of so many masks, in the order in which calls hand them over."""
        return list(self.architecture.mask_shapes(1, 1)) if count else []


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
