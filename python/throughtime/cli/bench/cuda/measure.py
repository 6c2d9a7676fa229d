"""One problem at a time: everyone's answers checked, then the times of each pass in turn."""

from __future__ import annotations

import functools
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..contenders import OURS
from .accuracy import bound, count, errors, reference, verdict
from .contenders import Contender, maker
from .device import Device, Run, turn
from .numbers import Numbers
from .problems import Problem, Work

Key = tuple[str, Numbers]  # who, in which numbers
Tick = Callable[[], None]


@dataclass
class Outcome:
    """What was found about one contender. `seconds` are its rounds of each pass, none where it is wrong or failed."""

    errors: dict[str, float] = field(default_factory=dict)
    wrong: str | None = None
    failed: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, which: str) -> float | None:
        """Of a pass's rounds."""
        return statistics.median(self.seconds[which]) if self.seconds.get(which) else None

    @property
    def error(self) -> float | None:
        """The largest of all tensors."""
        return max(self.errors.values(), default=None)


@dataclass
class Result:
    """One problem: an outcome for everyone who took part."""

    problem: Problem
    outcomes: dict[Key, Outcome]

    def ratios(self, which: str, theirs: Key, ours: Key) -> list[float]:
        """Their time in ours, round by round; none where one of them was not timed."""
        rounds = [self.outcomes[key].seconds.get(which, []) for key in (theirs, ours)]
        return [a / b for a, b in zip(*rounds, strict=True)] if all(rounds) else []

    def ratio(self, which: str, theirs: Key, ours: Key) -> float | None:
        """The median of these ratios."""
        found = self.ratios(which, theirs, ours)
        return statistics.median(found) if found else None

    def pairs(self) -> list[tuple[Key, Key]]:
        """Us and those we are compared with: in the same numbers, and in bfloat16 with cuDNN's float16 as well, for
        which alone it has a persistent kernel."""
        ours = [key for key in self.outcomes if key[0] == OURS]
        return [
            (our, their)
            for our in ours
            for their in self.outcomes
            if their[0] != OURS and (their[1] == our[1] or (our[1].type, their) == ("bfloat16", _PERSISTENT))
        ]

    def share(self, which: str, key: Key, ceilings: dict[str, float]) -> tuple[float, str] | None:
        """How much of its time the chip's ceilings account for, and what binds: where they account for less than half
        and steps wait for each other, that is latency."""
        time = self.outcomes[key].median(which)
        return None if time is None else _share(self.problem.work(which), key[1], time, ceilings)


_PERSISTENT: Key = ("cudnn", Numbers("float16"))


def _share(work: Work, numbers: Numbers, time: float, ceilings: dict[str, float]) -> tuple[float, str]:
    least = {
        "products": work.operations / ceilings["bfloat16_flops"],
        "memory": work.numbers * numbers.bytes / ceilings["copy_bytes_per_second"],
    }
    name = max(least, key=lambda which: least[which])
    share = least[name] / time
    return share, "latency" if work.steps is not None and share < 0.5 else name


def measure(
    problem: Problem, names: Iterable[str], numbers: Iterable[Numbers], device: Device, rounds: int, tick: Tick
) -> Result:
    """Check everyone's answers, then time those whose answers are right. `tick` is called after each part."""
    keys = [(name, kind) for kind in numbers for name in names]
    result = Result(problem, {key: Outcome() for key in keys})
    expected = functools.cache(lambda type: reference(problem, Numbers(type), device))  # as large as what is compared
    contenders: dict[Key, Contender] = {}
    for key, outcome in result.outcomes.items():
        with _failing(outcome):
            contender, answers = _answer(problem, key, device)
            outcome.errors = errors(answers, expected(key[1].type))
            outcome.wrong = verdict(outcome.errors, bound(problem, key[1], key[0]))
            if not outcome.wrong:
                contenders[key] = contender
    tick()
    for which in problem.passes:
        _time(which, contenders, result.outcomes, device, rounds)
        tick()
    return result


def _answer(problem: Problem, key: Key, device: Device) -> tuple[Contender, dict[str, Any]]:
    name, numbers = key
    numbers.apply()
    contender = maker(name, problem)(problem, numbers, device)
    return contender, contender.answers(count(problem))


def _time(
    which: str, contenders: dict[Key, Contender], outcomes: dict[Key, Outcome], device: Device, rounds: int
) -> None:
    runs: dict[Key, Run] = {}
    for key, contender in contenders.items():
        with _failing(outcomes[key]):
            key[1].apply()
            runs[key] = contender.run(which)
            outcomes[key].seconds[which] = []
    for _ in range(rounds):
        for key, run in runs.items():
            if not outcomes[key].failed:
                with _failing(outcomes[key]):
                    key[1].apply()
                    outcomes[key].seconds[which].append(turn(device.clock, run))


@contextmanager
def _failing(outcome: Outcome) -> Iterator[None]:
    """Whatever a contender raises, for want of memory or of a kernel for these sizes, is its own outcome."""
    try:
        yield
    except Exception as error:
        outcome.failed = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        outcome.seconds.clear()
