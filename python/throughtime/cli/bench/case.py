"""The interface of a case: one problem with its contenders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from .result import Outcome, Result, Row


class NotMeasured(Exception):
    """A case cannot be measured at all, for the reason in the message."""


class Contender(Protocol):
    """One contender in one case."""

    def check(self, outcome: Outcome) -> None:
        """Run it for the first time; record its errors, and whether they make it wrong."""

    def seconds(self, timed: str) -> float:
        """Take the time of one turn."""


class Case(ABC):
    """One problem and cell, with the contenders that take part."""

    problem: str
    cell: str
    sizes: Mapping[str, Any]
    timed: tuple[str, ...]  # timed one after the other, each in separate rounds
    alternates = False  # whether every other round runs backwards
    with_memory = False

    @property
    @abstractmethod
    def ratios(self) -> Mapping[str, tuple[str, str]]:
        """The contenders (theirs, ours) of each ratio by its name: the time of theirs over that of ours."""

    @abstractmethod
    def contenders(self) -> AbstractContextManager[Mapping[str, Contender]]:
        """The contenders by name, ready for as long as the context lasts."""

    def session(self) -> AbstractContextManager[None]:
        """Resources held while the case is measured."""
        return nullcontext()

    def during_round(self) -> AbstractContextManager[None]:
        """The conditions of a round."""
        return nullcontext()

    def memory(self, name: str) -> int | None:
        """The peak memory of a contender in bytes; None if the system does not report it."""
        raise NotImplementedError

    def rows(self, result: Result) -> list[Row]:
        """The rows of the table: one per ratio."""
        return [Row(result, ours, theirs) for theirs, ours in self.ratios.values()]

    def parts(self, rounds: int) -> int:
        """Steps of the progress bar: the check, the rounds, peak memory."""
        return 1 + rounds * len(self.timed) + self.with_memory

    def __str__(self) -> str:
        return f"{self.problem} {self.cell}"
