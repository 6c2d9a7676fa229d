"""Who is measured on a device: throughtime's torch modules, cuDNN and others, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from ..contenders import OURS
from . import layers, rows
from .device import Device, Run
from .numbers import Numbers
from .problems import AddNorm, Problem

NEEDS = {"flashrnn": "flashrnn"}  # contender to a package beside torch


class Contender(Protocol):
    """One problem in one type of numbers, with its data."""

    def run(self, which: str) -> Run:
        """What does this pass once, and keeps nothing of it."""

    def answers(self, count: int) -> dict[str, Any]:
        """Tensors of a whole run whose gradients come from the first `count` steps or rows alone."""


Maker = Callable[[Any, Numbers, Device], Contender]  # of the kind of problem that it is for


def maker(name: str, problem: Problem) -> Maker:
    """What makes this contender for such a problem."""
    made: dict[str, Maker]
    if isinstance(problem, AddNorm):
        made = {OURS: rows.Ours, "torch": rows.Torch, "copy": rows.Copy}
    else:
        made = {OURS: layers.Ours, "cudnn": layers.CuDNN, "flashrnn": layers.FlashRNN, "torch-loop": layers.Loop}
    return made[name]


def available(name: str) -> bool:
    """Whether the package that this contender needs is there."""
    try:
        importlib.import_module(NEEDS.get(name, "torch"))
    except ImportError:
        return False
    return True
