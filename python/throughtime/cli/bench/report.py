"""What was measured, as tables, as lines beneath them, and as plain data for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .contenders import OURS
from .measure import EVERY, Outcome, Result

_MB = 1e6


_WHAT = ("problem", "cell", "against")
_SPEED = ("ms\nours", "ms\ntheirs", "\nratio", "GFLOP/s\nours", "GFLOP/s\ntheirs", "% of\npeak")
_COST = ("peak MB\nours", "peak MB\ntheirs", "error\nours", "error\ntheirs")


def tables(results: Sequence[Result], peak: float, title: str, caption: str, console: Console) -> list[Table]:
    """One row per problem, cell and contender; speed apart from the rest where the console is narrow."""
    rows = [_row(result, name, peak) for result in results for name in result.others or (None,)]
    whole = table((*_WHAT, *_SPEED, *_COST), rows, title, caption)
    if console.measure(whole, options=console.options.update(width=1000)).maximum <= console.width:
        return [whole]
    what, speed = len(_WHAT), len(_WHAT) + len(_SPEED)
    return [
        table((*_WHAT, *_SPEED), [row[:speed] for row in rows], title, None),
        table((*_WHAT, *_COST), [row[:what] + row[speed:] for row in rows], None, caption),
    ]


def modes_table(results: Sequence[Result], base: str = "full") -> Table:
    """Time and tape of our memory modes, relative to `base`."""
    rows = []
    for result in results:
        whole = result.outcomes[base].tape_bytes
        for name, outcome in result.outcomes.items():
            tape = outcome.tape_bytes
            share = tape / whole if tape and whole else None
            times = _milliseconds(outcome), number(result.ratio(name, base))
            rows.append([result.problem, _cell(result), name, *times, _scaled(tape, 1 / _MB), number(share, ".3f")])
    columns = ("problem", "cell", "memory", "ms", "time", "tape MB", "tape")
    return table(columns, rows, f"Memory modes, time and tape relative to {base}", None)


def wrong_answers(results: Sequence[Result]) -> list[str]:
    """A line for everyone who was not timed."""
    return [
        f"wrong, not timed: {name} on {_place(result)}: {outcome.wrong}"
        for result in results
        for name, outcome in result.outcomes.items()
        if outcome.wrong
    ]


def remarks(results: Sequence[Result]) -> list[str]:
    """What has no column: first calls, and what single problems are there for."""
    said = []
    for name in dict.fromkeys(name for result in results for name in result.outcomes if name != EVERY):
        slowest = max((result for result in results if name in result.outcomes), key=lambda r: _first(r, name))
        said.append(f"longest first call: {name} {_first(slowest, name):.3g} s ({_place(slowest)})")
    for result in results:
        if EVERY in result.outcomes and (ratio := result.ratio(OURS, EVERY)):
            said.append(f"{_place(result)}: our backward takes {ratio:.2f} of its time with a loss on every step")
        memory = result.outcomes[OURS].memory
        if result.task.problem.lean and memory is not None:
            rest = (memory - result.task.x.nbytes) / _MB
            said.append(f"{_place(result)}: {rest:.1f} MB above the input and its gradient")
    return said


def as_data(result: Result, base: str = OURS) -> dict[str, Any]:
    """A result as JSON has it."""
    problem = result.task.problem
    return {
        "problem": result.problem,
        "cell": result.task.cell,
        **dict(zip("TBIH", problem[:4], strict=True)),
        "precision": result.precision,
        "timed": "backward" if problem.last else "forward and backward",
        "operations": result.task.operations,
        "contenders": {
            name: _outcome_data(outcome, result.task.operations) for name, outcome in result.outcomes.items()
        },
        "ratios": {
            name: {"rounds": result.ratios(name, base), "median": result.ratio(name, base)}
            for name in result.outcomes
            if name != base
        },
    }


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str | None,
    caption: str | None,
    words: int = len(_WHAT),
) -> Table:
    """Of the look they all have: so many columns of words, the rest numbers."""
    made = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place < words else "right")
    for row in rows:
        made.add_row(*row)
    return made


def _row(result: Result, name: str | None, peak: float) -> list[str]:
    ours, theirs = result.outcomes[OURS], result.outcomes[name] if name else None
    both = (ours, theirs)
    operations = result.task.operations
    return [
        *(result.problem, _cell(result), name or ""),
        *(_milliseconds(outcome) for outcome in both),
        number(result.ratio(name) if name else None),
        *(_scaled(outcome.rate(operations) if outcome else None, 1e-9) for outcome in both),
        _scaled(ours.rate(operations), 100 / peak),
        *(_scaled(outcome.memory if outcome else None, 1 / _MB) for outcome in both),
        f"{result.error(OURS, beside=name):.1e}",
        f"{result.error(name):.1e}" if name else "",
    ]


def _outcome_data(outcome: Outcome, operations: float) -> dict[str, Any]:
    return {
        "seconds": outcome.seconds,
        "median_seconds": outcome.median,
        "flops": outcome.rate(operations),
        "first_call_seconds": outcome.first_call,
        "errors": {name: error if math.isfinite(error) else None for name, error in outcome.errors.items()},
        "wrong": outcome.wrong,
        "peak_memory_bytes": outcome.memory,
        "tape_bytes": outcome.tape_bytes,
    }


def _first(result: Result, name: str) -> float:
    return result.outcomes[name].first_call


def _cell(result: Result) -> str:
    return result.task.cell if result.precision == "highest" else f"{result.task.cell}, {result.precision}"


def _place(result: Result) -> str:
    return f"{result.problem} {_cell(result)}"


def _milliseconds(outcome: Outcome | None) -> str:
    if outcome is not None and outcome.wrong:
        return "wrong"
    return _scaled(outcome.median if outcome else None, 1e3)


def _scaled(value: float | None, factor: float) -> str:
    return number(None if value is None else value * factor)


def number(value: float | None, form: str = "") -> str:
    """Three digits or more, no exponent; blank where there is no number."""
    if value is None:
        return ""
    return format(value, form or (".0f" if value >= 100 else ".1f" if value >= 10 else ".2f"))
