"""Results as a table, as lines beneath it, and as plain data for JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..report import number, table
from .contenders import TORCH
from .measure import Outcome, Result, Settings

_MB = 1e6
_WORDS = ("problem", "cell", "contender")
_COLUMNS = (*_WORDS, "ms\na step", "samples\n/ s", "times as fast\nas torch.nn", "lowest,\nhighest", "peak\nMB")
_FIRST = ("first\nstep s", "error of\ngradients")
_BESIDE = (*_WORDS, "ms\n1 thread", "ms\n{} threads", "time with {}\nover 1", "lowest,\nhighest")


def steps_table(results: Sequence[Result], settings: Settings, title: str, caption: str) -> Table:
    """One row per problem, cell and contender."""
    rows = [_row(result, name, settings.threads[-1]) for result in results for name in settings.names]
    return table((*_COLUMNS, *_FIRST), rows, title, caption)


def beside_table(results: Sequence[Result], settings: Settings, title: str, caption: str) -> Table:
    """The same rows: one thread, and several, beside busy processes."""
    one, most = settings.threads
    columns = [column.format(most) for column in _BESIDE]
    rows = [
        [
            *_place(result, name),
            *(_milliseconds(result.outcomes[name], threads) for threads in (one, most)),
            *_ratio(result.scaling(name, most, one)),
        ]
        for result in results
        for name in settings.names
    ]
    return table(columns, rows, title, caption)


def troubles(results: Sequence[Result]) -> list[str]:
    """A line for each contender that was not timed, and for other failures."""
    said = []
    for result in results:
        place = f"{result.name} {result.task.cell}"
        for name, outcome in result.outcomes.items():
            if outcome.wrong:
                said.append(f"wrong, not timed: {name} on {place}: {outcome.wrong}")
            if outcome.failed:
                said.append(f"failed: {name} on {place}: {outcome.failed}")
        said += [f"{place}: {note}" for note in result.notes]
    return said


def as_data(result: Result, settings: Settings) -> dict[str, Any]:
    """A result as JSON has it. With busy processes, `scaling` is the time with all threads over that with one."""
    threads = settings.threads[-1]
    data = {
        "problem": result.name,
        "cell": result.task.cell,
        "sizes": result.problem._asdict(),
        "contenders": {name: _outcome_data(result, name, settings) for name in settings.names},
        "ratios": {name: _ratio_data(result.ratios(name, threads)) for name in settings.names if name != TORCH},
    }
    if settings.beside:
        data["scaling"] = {name: _ratio_data(result.scaling(name, threads)) for name in settings.names}
    return data


def _outcome_data(result: Result, name: str, settings: Settings) -> dict[str, Any]:
    outcome = result.outcomes[name]
    median = outcome.median(settings.threads[-1])
    return {
        "seconds": {str(threads): seconds for threads, seconds in outcome.seconds.items()},
        "median_seconds": median,
        "steps_per_second": 1 / median if median else None,
        "samples_per_second": result.problem.B / median if median else None,
        "first_step_seconds": outcome.first_step,
        "peak_memory_bytes": outcome.memory,
        "gradient_errors": {name: _finite(error) for name, error in outcome.errors.items()},
        "losses": [_finite(loss) for loss in outcome.losses],
        "loss_error": _finite(outcome.loss_error),
        "wrong": outcome.wrong,
        "failed": outcome.failed,
    }


def _ratio_data(rounds: list[float]) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "median": statistics.median(rounds) if rounds else None,
        "lowest": min(rounds, default=None),
        "highest": max(rounds, default=None),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _row(result: Result, name: str, threads: int) -> list[str]:
    outcome = result.outcomes[name]
    median = outcome.median(threads)
    return [
        *_place(result, name),
        _milliseconds(outcome, threads),
        number(result.problem.B / median if median else None),
        *_ratio(result.ratios(name, threads) if name != TORCH else []),
        number(outcome.memory / _MB if outcome.memory is not None else None),
        number(outcome.first_step),
        f"{max(outcome.errors.values()):.1e}" if outcome.errors else "",
    ]


def _place(result: Result, name: str) -> tuple[str, str, str]:
    return result.name, result.task.cell, "torch.nn" if name == TORCH else name


def _milliseconds(outcome: Outcome, threads: int) -> str:
    if outcome.wrong or outcome.failed:
        return "wrong" if outcome.wrong else "failed"
    median = outcome.median(threads)
    return number(None if median is None else median * 1e3)


def _ratio(rounds: list[float]) -> tuple[str, str]:
    """The median of the rounds, and the lowest and the highest."""
    if not rounds:
        return "", ""
    return number(statistics.median(rounds)), f"{number(min(rounds))}, {number(max(rounds))}"
