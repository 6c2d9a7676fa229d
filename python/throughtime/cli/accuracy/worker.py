"""Runs the functions and kernels, in a separate process for each instruction set.

A process chooses its instruction set when it first calls a kernel, from ``THROUGHTIME_ISA``.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

import throughtime as tt

from ..bench.process import Process, ProcessError
from .functions import FUNCTIONS
from .inputs import Array, Draw
from .kernels import KERNELS, Results


class Worker:
    """Functions and kernels of this process's instruction set."""

    def precisions(self) -> list[str]:
        """The precisions with separate products."""
        found: list[str] = (tt.show_config("dicts") or {})["matmul precisions"]
        return found

    def function(self, name: str, x: Array) -> Array:
        """A function's values."""
        return FUNCTIONS[name].run(x)

    def kernel(self, name: str, draw: Draw, precision: str = "highest") -> Results:
        """A kernel's results on these numbers."""
        tt.set_matmul_precision(precision)
        return KERNELS[name].run(replace(draw))  # a new one, whose numbers start anew


class Caller(Protocol):
    """Answers requests."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what a method of `Worker` returns."""

    def close(self) -> None:
        """End; no more requests follow."""


class Workers:
    """A worker for each level. A level whose process fails takes no further part."""

    def __init__(self, callers: dict[str, Caller]) -> None:
        self._callers = callers
        self.failed: dict[str, str] = {}

    @classmethod
    def start(cls, levels: list[str]) -> Workers:
        """Start a process for each level."""
        return cls({level: Process(Worker, environment={"THROUGHTIME_ISA": level}) for level in levels})

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for caller in self._callers.values():
            caller.close()

    def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        """The answers of all levels that have not failed, by level."""
        answers = {level: self.ask_one(level, method, *arguments) for level in self._callers}
        return {level: answer for level, answer in answers.items() if level not in self.failed}

    def ask_one(self, level: str, method: str, *arguments: Any) -> Any:
        """The answer of one level; None if it fails or has failed."""
        if level in self.failed:
            return None
        try:
            return self._callers[level].call(method, *arguments)
        except ProcessError as error:
            self.failed[level] = str(error)
            return None
