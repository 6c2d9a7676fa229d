"""The settings of a call, without its tensors, as text: operators in a compiled graph take it as a constant."""

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
        The layer; each call passes the parameters.
    place : Cpu or Cuda
        The device.
    checks : Checks
        Checks of the arrays on that device.
    memory : str, int or None
        As `Recurrent.forward` takes it; None if no backward follows.
    names : tuple of str
        Names of the parameters, in the order in which calls pass them.
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
        """The names of a call's masks, in the order in which it passes them; none if `count` is 0."""
        return list(self.architecture.mask_shapes(1, 1)) if count else []


@lru_cache(maxsize=1024)
def plan_of(text: str) -> Plan:
    """The plan that a text from `call_text` describes."""
    return Plan(*ast.literal_eval(text))


def layer_text(kind: str, options: dict[str, Any]) -> str:
    """The part of a plan's text that is the same for all calls of a layer."""
    return f"{kind!r}, {options!r}"


def call_text(layer: str, dtype: torch.dtype, batch_first: bool, memory: str | int | None, device: str = "cpu") -> str:
    """The literal that `plan_of` reads; `layer` is from `layer_text`."""
    return f"({layer}, {device!r}, {str(PLACES[device].computes_in(dtype))[6:]!r}, {batch_first!r}, {memory!r})"
