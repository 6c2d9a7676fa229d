"""Who is measured on a device: throughtime's torch modules, cuDNN and others, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from ..contenders import OURS
from .device import Device, Run
from .numbers import Numbers
from .problems import AddNorm, Problem

COPY = "copy"
NEEDS = {"flashrnn": "flashrnn"}  # contender to a package beside torch


class Contender(Protocol):
    """One problem in one type of numbers, with its data."""

    def run(self, which: str) -> Run:
        """What does this pass once, and keeps nothing of it."""

    def answers(self, count: int) -> dict[str, Any]:
        """Tensors of a whole run whose gradients come from the first `count` steps or rows alone."""


Maker = Callable[[Problem, Numbers, Device], Contender]


def maker(name: str, problem: Problem) -> Maker:
    """What makes this contender for such a problem."""
    if isinstance(problem, AddNorm):
        rows: Any = importlib.import_module(".rows", __package__)
        return {OURS: rows.Ours, "torch": rows.Torch, COPY: rows.Copy}[name]  # type: ignore[no-any-return]
    layers: Any = importlib.import_module(".layers", __package__)
    made = {OURS: layers.Ours, "cudnn": layers.CuDNN, "flashrnn": layers.FlashRNN, "torch-loop": layers.Loop}
    return made[name]  # type: ignore[no-any-return]


def available(name: str) -> bool:
    """Whether the package that this contender needs is there."""
    try:
        importlib.import_module(NEEDS.get(name, "torch"))
    except ImportError:
        return False
    return True
