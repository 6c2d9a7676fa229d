"""One layer with its contenders: compare answers with float64, then take times on the device's clock."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..accuracy import errors, verdict
from ..case import Case, Contender
from ..result import Outcome
from .device import Device
from .dtypes import Numbers
from .problems import Problem


class Entry(NamedTuple):
    """How to make a contender, and the reference for its answers."""

    make: Callable[[], Any]
    numbers: Numbers
    expected: Callable[[], Mapping[str, Any]]
    bound: float


class LayerContender:
    """One implementation of the layer."""

    def __init__(self, entry: Entry, device: Device, compared: int) -> None:
        self._entry, self._device, self._compared = entry, device, compared
        self._numbers = entry.numbers
        self._layer: Any = None

    def check(self, outcome: Outcome) -> None:
        self._device.apply(self._numbers)
        layer = self._entry.make()
        begin = time.perf_counter()
        answers = layer.answers(self._compared)
        self._device.synchronize()
        outcome.first_call = time.perf_counter() - begin
        outcome.errors = errors(answers, self._entry.expected())
        outcome.wrong = verdict(outcome.errors, self._entry.bound)
        if hasattr(layer, "tape"):
            outcome.details["tape_bytes"] = layer.tape.nbytes
        if not outcome.wrong:
            self._layer = layer
        del self._entry  # the last one also frees the reference

    def seconds(self, timed: str) -> float:
        self._device.apply(self._numbers)
        return self._device.turn(self._layer, timed)


class LayerCase(Case):
    """A problem of one cell on a device, with all contenders in this process."""

    def __init__(self, name: str, problem: Problem, device: Device, most: int = sys.maxsize) -> None:
        self.problem, self.cell, self.sizes, self.timed = name, problem.cell, problem.sizes, problem.timed
        self.layer = problem
        self._device = device
        self.compared = min(most, next(iter(problem.sizes.values())))  # timesteps or rows of the answers

    @abstractmethod
    def entries(self) -> dict[str, Entry]:
        """The contenders by name."""

    @contextmanager
    def contenders(self) -> Iterator[Mapping[str, Contender]]:
        """Contenders are made when they are checked, and dropped after the last round."""
        yield {name: LayerContender(entry, self._device, self.compared) for name, entry in self.entries().items()}
