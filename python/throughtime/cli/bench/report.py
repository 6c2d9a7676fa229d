"""Results as tables, as lines below them, and as plain data for JSON."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from .formatting import finite, number
from .result import Outcome, Result, Row

if TYPE_CHECKING:
    from .suite import Columns, Suite


def tables(suite: Suite, results: Sequence[Result], machine: Mapping[str, Any], console: Console) -> list[Table]:
    """All results in one table, or in two if the console is narrow."""
    rows = [row for result in results for row in result.case.rows(result)]
    words, speed, rest = suite.columns(machine)
    title, caption = suite.title(machine), suite.caption(machine)
    whole = _table(rows, words, {**speed, **rest}, title, caption)
    if console.measure(whole, options=console.options.update(width=1000)).maximum <= console.width or not rest:
        return [whole]
    return [_table(rows, words, speed, title, None), _table(rows, words, rest, None, caption)]


def lines(results: Sequence[Result]) -> list[str]:
    """Contenders that were not timed, with the reason, and each ratio over several problems."""
    return [*_troubles(results), *_summary(results)]


def first_calls(results: Sequence[Result]) -> list[str]:
    """A line on each contender's longest first call."""
    longest: dict[str, tuple[float, str]] = {}
    for result in results:
        for name, outcome in result.outcomes.items():
            if outcome.first_call is not None:
                longest[name] = max(longest.get(name, (0.0, "")), (outcome.first_call, str(result.case)))
    return [f"longest first call: {name} {seconds:.3g} s ({case})" for name, (seconds, case) in longest.items()]


def document(
    suite: Suite, results: Sequence[Result], skipped: Sequence[str], interrupted: bool, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything as plain data. All kinds of benchmarks have the same format."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": suite.versions(),
        "machine": machine,
        **suite.settings(),
        "rounds": suite.rounds,
        "results": [_result_data(suite, result, machine) for result in results],
        "skipped": [*skipped, *(note for result in results for note in result.notes)],
        "interrupted": interrupted,
    }


def _table(rows: Sequence[Row], words: Columns, figures: Columns, title: str | None, caption: str | None) -> Table:
    made = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in words:
        made.add_column(heading)
    for heading in figures:
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(*(contents(row) for contents in (*words.values(), *figures.values())))
    return made


def _troubles(results: Sequence[Result]) -> list[str]:
    said = []
    for result in results:
        for name, outcome in result.outcomes.items():
            if outcome.wrong:
                said.append(f"wrong, not timed: {name} on {result.case}: {outcome.wrong}")
            if outcome.failed:
                said.append(f"failed: {name} on {result.case}: {outcome.failed}")
        said += result.notes
    return list(dict.fromkeys(said))  # once, even if the case was timed in two ways


def _summary(results: Sequence[Result]) -> list[str]:
    found: dict[str, list[float]] = {}
    for result in results:
        for name, pair in result.case.ratios.items():
            if (ratio := result.ratio(*pair)) is not None:
                found.setdefault(f"{result.case.cell} {result.timed}, {name}", []).append(ratio)
    return [
        f"{line}: {number(min(ratios))} to {number(max(ratios))}, median {number(statistics.median(ratios))} "
        f"of {len(ratios)}"
        for line, ratios in found.items()
        if len(ratios) > 1
    ]


def _result_data(suite: Suite, result: Result, machine: Mapping[str, Any]) -> dict[str, Any]:
    case = result.case
    return {
        "problem": case.problem,
        "cell": case.cell,
        "sizes": dict(case.sizes),
        "timed": result.timed,
        "contenders": {
            name: _outcome_data(outcome) | suite.details(result, name, machine)
            for name, outcome in result.outcomes.items()
        },
        "ratios": {name: _ratio_data(result, *pair) for name, pair in case.ratios.items()},
    }


def _outcome_data(outcome: Outcome) -> dict[str, Any]:
    return {
        "seconds": outcome.seconds,
        "median_seconds": outcome.median,
        "first_call_seconds": outcome.first_call,
        "errors": {name: finite(error) for name, error in outcome.errors.items()},
        "wrong": outcome.wrong,
        "failed": outcome.failed,
        "peak_memory_bytes": outcome.memory,
        **outcome.details,
    }


def _ratio_data(result: Result, theirs: str, ours: str) -> dict[str, Any]:
    rounds = result.ratios(theirs, ours)
    return {
        "of": theirs,
        "over": ours,
        "rounds": rounds,
        "median": result.ratio(theirs, ours),
        "lowest": min(rounds, default=None),
        "highest": max(rounds, default=None),
    }
