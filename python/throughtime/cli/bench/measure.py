"""One problem at a time: answers checked, then times in turn, then memory."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .accuracy import bound, errors, reference, verdict
from .contenders import OURS, PRECISIONS, Contender, Maker, Ours
from .memory import peak_memory
from .problems import Task
from .timing import backward_seconds, interleave, ratios, step_seconds

EVERY = "throughtime, loss on every step"

Tick = Callable[[], None]


@dataclass
class Outcome:
    """What was found about one contender. `seconds` are its rounds, none where its answers are wrong."""

    first_call: float
    errors: dict[str, float]
    wrong: str | None
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    tape_bytes: int | None = None

    @property
    def median(self) -> float | None:
        """Of the rounds."""
        return statistics.median(self.seconds) if self.seconds else None

    def rate(self, operations: float) -> float | None:
        """Operations per second."""
        return None if self.median is None else operations / self.median


@dataclass
class Result:
    """One problem, cell and precision: an outcome for everyone who took part."""

    problem: str
    task: Task
    precision: str
    outcomes: dict[str, Outcome]

    @property
    def others(self) -> list[str]:
        """Those to whom we are compared."""
        return [name for name in self.outcomes if name not in (OURS, EVERY)]

    def ratios(self, name: str, base: str = OURS) -> list[float]:
        """Of the times of `name` to those of `base`, round by round; none where one of them was not timed."""
        theirs, ours = self.outcomes[name].seconds, self.outcomes[base].seconds
        return ratios(theirs, ours) if theirs and ours else []

    def ratio(self, name: str, base: str = OURS) -> float | None:
        """The median of these ratios."""
        found = self.ratios(name, base)
        return statistics.median(found) if found else None

    def error(self, name: str, beside: str | None = None) -> float:
        """The largest over the tensors of `name`; with `beside`, over those that both have."""
        found = self.outcomes[name].errors
        shared = found if beside is None else self.outcomes[beside].errors
        return max(found[tensor] for tensor in found if tensor in shared)


def measure(
    problem: str, task: Task, makers: Mapping[str, Maker], precision: str, rounds: int, tick: Tick = lambda: None
) -> Result:
    """Check everyone's answers, then time those whose answers are right. `tick` is called after each part."""
    contenders, outcomes = _check(task, makers, precision)
    if task.problem.last:
        every = Task(task.problem._replace(last=False), task.cell)
        more, found = _check(every, {EVERY: Ours}, precision)
        contenders |= more
        outcomes |= found
    tick()
    clock = backward_seconds if task.problem.last else step_seconds
    for name, times in interleave(contenders, clock, rounds, tick).items():
        outcomes[name].seconds = times
    return Result(problem, task, precision, outcomes)


def measure_memory(result: Result, threads: int) -> list[str]:
    """Add the peak memory of everyone who was timed; a line for each of whom it is not known."""
    failed = []
    for name, outcome in result.outcomes.items():
        if name != EVERY and not outcome.wrong:
            try:
                outcome.memory = peak_memory(name, result.task, threads, result.precision)
            except RuntimeError as error:
                failed.append(f"{name} on {result.problem} {result.task.cell}: {error}")
    return failed


def measure_modes(
    problem: str, task: Task, modes: list[str], precision: str, rounds: int, tick: Tick = lambda: None
) -> Result:
    """Our own times and tapes in those memory modes."""
    makers: dict[str, Maker] = {mode: functools.partial(Ours, memory=mode) for mode in dict.fromkeys(modes)}
    return measure(problem, task, makers, precision, rounds, tick)


def _check(task: Task, makers: Mapping[str, Maker], precision: str) -> tuple[dict[str, Contender], dict[str, Outcome]]:
    """Those whose answers are right, and the outcomes of all."""
    expected = reference(task)
    contenders: dict[str, Contender] = {}
    outcomes = {}
    for name, make in makers.items():
        contender = make(task)
        first_call = step_seconds(contender)
        found = errors(contender.answers(), expected)
        own = precision if isinstance(contender, Ours) else PRECISIONS.get(name, "highest")
        outcomes[name] = Outcome(first_call, found, verdict(found, bound(task, own)))
        if isinstance(contender, Ours):
            outcomes[name].tape_bytes = contender.tape.nbytes
        if not outcomes[name].wrong:
            contenders[name] = contender
    return contenders, outcomes
