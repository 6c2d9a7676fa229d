"""Findings: one outcome for each contender, and the ratios of their times."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass
class Outcome:
    """Findings on one contender. `seconds` has one time per round; none if the contender is wrong or has failed."""

    first_call: float | None = None
    errors: dict[str, float] = field(default_factory=dict)  # relative to float64, root mean square, by tensor
    wrong: str | None = None
    failed: str | None = None
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    details: dict[str, Any] = field(default_factory=dict)  # further figures of this kind of benchmark

    @property
    def median(self) -> float | None:
        """The median time of the rounds."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def error(self) -> float | None:
        """The largest error of all tensors."""
        return max(self.errors.values(), default=None)


@dataclass
class Result:
    """One case, timed in one way, with the outcome of each contender."""

    case: Any  # the suite's own subclass of Case
    timed: str
    outcomes: dict[str, Outcome]
    notes: list[str] = field(default_factory=list)

    def ratios(self, theirs: str, ours: str) -> list[float]:
        """The time of `theirs` over that of `ours`, per round; empty unless both were timed."""
        times = self.outcomes[theirs].seconds, self.outcomes[ours].seconds
        return [a / b for a, b in zip(*times, strict=True)] if all(times) else []

    def ratio(self, theirs: str, ours: str) -> float | None:
        """The median of these ratios."""
        found = self.ratios(theirs, ours)
        return statistics.median(found) if found else None


class Row(NamedTuple):
    """One row of a table: a contender, and the one that it is compared with, if any."""

    result: Result
    ours: str
    theirs: str | None

    @property
    def case(self) -> Any:
        """The result's case."""
        return self.result.case

    @property
    def mine(self) -> Outcome:
        """The contender's outcome."""
        return self.result.outcomes[self.ours]

    @property
    def other(self) -> Outcome | None:
        """The outcome of the one that it is compared with."""
        return None if self.theirs is None else self.result.outcomes[self.theirs]

    @property
    def ratios(self) -> list[float]:
        """Their time over ours, per round."""
        return [] if self.theirs is None else self.result.ratios(self.theirs, self.ours)
