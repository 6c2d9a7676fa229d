"""Measure one case: answers, then interleaved times, then memory. A contender is timed only if its answer agrees."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from .case import Case, Contender, NotMeasured
from .process import ProcessError
from .result import Outcome, Result

Tick = Callable[[], None]


def measure(case: Case, rounds: int, tick: Tick = lambda: None) -> list[Result]:
    """Check all contenders, then time those whose answers are right. Calls `tick` after each part."""
    with case.session():
        results = _measure_times(case, rounds, tick)
        if case.with_memory:
            for result in results:
                _measure_memory(result)
            tick()
    return results


def _measure_times(case: Case, rounds: int, tick: Tick) -> list[Result]:
    with case.contenders() as contenders:
        outcomes = {name: Outcome() for name in contenders}
        for name, contender in contenders.items():
            with _failing(outcomes[name]):
                contender.check(outcomes[name])
        tick()
        results = []
        for timed in case.timed:
            result = Result(
                case, timed, {name: dataclasses.replace(each, seconds=[]) for name, each in outcomes.items()}
            )
            for number in range(rounds):
                with case.during_round():
                    _round(result, contenders, _order(case, list(contenders), number))
                tick()
            results.append(result)
    return results


def _order(case: Case, names: Sequence[str], number: int) -> Sequence[str]:
    """The order of the contenders in a round; with `alternates`, no contender always follows the same one."""
    return names[::-1] if case.alternates and number % 2 else names


def _round(result: Result, contenders: Mapping[str, Contender], order: Sequence[str]) -> None:
    for name in order:
        outcome = result.outcomes[name]
        if not (outcome.wrong or outcome.failed):
            with _failing(outcome):
                outcome.seconds.append(contenders[name].seconds(result.timed))


def _measure_memory(result: Result) -> None:
    for name, outcome in result.outcomes.items():
        if outcome.seconds:
            try:
                outcome.memory = result.case.memory(name)
            except ProcessError as error:
                result.notes.append(f"peak memory of {name} on {result.case}: {error}")


@contextmanager
def _failing(outcome: Outcome) -> Iterator[None]:
    """Record any error of a contender, such as missing memory or a missing kernel, and drop its times."""
    try:
        yield
    except NotMeasured:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ProcessError) else f"{type(error).__name__}: {error}"
        outcome.failed = textwrap.shorten(reason, 200)
        outcome.seconds.clear()
