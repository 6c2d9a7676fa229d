"""One problem at a time: answers checked, then blocks of steps in turn, then memory."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from ..timing import ratios
from .answers import Answers, fault, gradient_errors, loss_error
from .contenders import COMPILED, PROCESSES, TORCH
from .load import busy_processes
from .problems import Problem, Task
from .remote import Worker, WorkerError, workers


class Settings(NamedTuple):
    """How contenders are measured: with each number of `threads`; the table shows the last."""

    names: list[str]
    threads: list[int]
    rounds: int
    beside: int = 0
    with_memory: bool = True


class Side(Protocol):
    """Runs contenders: a `Worker`, or a `Host` in this process."""

    def reference(self) -> Answers: ...
    def answers(self, name: str) -> tuple[Answers, float]: ...
    def block(self, name: str) -> float: ...


Place = tuple[str, int]  # a contender and its number of threads
Start = Callable[[Task, Sequence[str], Sequence[int], Path], AbstractContextManager[Mapping[Place, Side]]]
Tick = Callable[[], None]


@dataclass
class Outcome:
    """Findings on one contender. `seconds` are per step, one for each round; none if it failed or is wrong."""

    first_step: float | None = None
    errors: dict[str, float] = field(default_factory=dict)  # of the gradients
    losses: list[float] = field(default_factory=list)
    loss_error: float | None = None
    wrong: str | None = None
    failed: str | None = None
    seconds: dict[int, list[float]] = field(default_factory=dict)  # by the number of threads
    memory: int | None = None

    def median(self, threads: int) -> float | None:
        """Of the rounds."""
        found = self.seconds.get(threads)
        return statistics.median(found) if found else None

    def fail(self, reason: str) -> None:
        """Record the failure, and drop times measured before it."""
        self.failed = reason
        self.seconds.clear()


@dataclass
class Result:
    """One problem and cell, with the outcome of each contender."""

    name: str
    task: Task
    outcomes: dict[str, Outcome]
    notes: list[str] = field(default_factory=list)

    @property
    def problem(self) -> Problem:
        """Its sizes."""
        return self.task.problem

    def ratios(self, name: str, threads: int) -> list[float]:
        """torch.nn's time over that of `name`, per round; empty unless both were timed."""
        theirs = self.outcomes[TORCH].seconds.get(threads)
        own = self.outcomes[name].seconds.get(threads)
        return ratios(theirs, own) if theirs and own else []

    def scaling(self, name: str, most: int, one: int = 1) -> list[float]:
        """The time of `name` with `most` threads over that with one, per round; empty unless both were timed."""
        seconds = self.outcomes[name].seconds
        return ratios(seconds[most], seconds[one]) if seconds.get(most) and seconds.get(one) else []

    @property
    def failing(self) -> bool:
        """Whether the command fails: after any wrong answer, and any failure but torch.compile's."""
        return any(outcome.wrong or (outcome.failed and name != COMPILED) for name, outcome in self.outcomes.items())


def block_order(places: Sequence[Place], number: int) -> list[Place]:
    """Forwards in one round, backwards in the next, so that no contender always follows the same one."""
    return list(places) if number % 2 == 0 else list(reversed(places))


def measure(name: str, task: Task, settings: Settings, tick: Tick = lambda: None, start: Start = workers) -> Result:
    """Check all answers, then time the contenders whose answers are right. Calls `tick` after each part."""
    with tempfile.TemporaryDirectory() as cache:
        outcomes = {contender: Outcome() for contender in settings.names}
        with start(task, settings.names, settings.threads, Path(cache)) as sides:
            _check(task, sides, outcomes)
            tick()
            for number in range(settings.rounds):
                with busy_processes(settings.beside):
                    _round(block_order(list(sides), number), sides, outcomes)
                tick()
        notes = []
        if settings.with_memory:
            notes = _measure_memory(task, settings.threads[-1], outcomes, Path(cache))
            tick()
    return Result(name, task, outcomes, notes)


def _check(task: Task, sides: Mapping[Place, Side], outcomes: Mapping[str, Outcome]) -> None:
    expected = next(side for (name, _), side in sides.items() if name == TORCH).reference()
    for (name, _), side in sides.items():
        outcome = outcomes[name]
        try:
            answers, outcome.first_step = side.answers(name)
        except WorkerError as error:
            outcome.fail(str(error))
            continue
        outcome.errors, outcome.losses = gradient_errors(answers, expected), answers.losses
        outcome.loss_error = loss_error(answers, expected)
        outcome.wrong = outcome.wrong or fault(task, answers, expected)


def _round(order: Sequence[Place], sides: Mapping[Place, Side], outcomes: Mapping[str, Outcome]) -> None:
    for name, threads in order:
        outcome = outcomes[name]
        if not (outcome.wrong or outcome.failed):
            try:
                outcome.seconds.setdefault(threads, []).append(sides[name, threads].block(name))
            except WorkerError as error:
                outcome.fail(str(error))


def _measure_memory(task: Task, threads: int, outcomes: Mapping[str, Outcome], cache: Path) -> list[str]:
    """Of each timed contender, alone in a new process. Returns a line for each that failed."""
    failed = []
    for name, outcome in outcomes.items():
        if outcome.seconds:
            worker = Worker(task, PROCESSES[name], threads, cache)
            try:
                outcome.memory = worker.memory(name)
            except WorkerError as error:
                failed.append(f"peak memory of {name}: {error}")
            finally:
                worker.close()
    return failed
