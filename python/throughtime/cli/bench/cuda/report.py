"""What was measured on the device, as a table, as lines beneath it, and as plain data for JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..report import number, table
from .measure import Key, Outcome, Result

_COLUMNS = ("problem", "pass", "ours in", "against", "ms\nours", "ms\ntheirs", "\nratio")
_SHARES = ("us/step\nours", "us/step\ntheirs", "% of\nceiling", "binds", "error\nours", "error\ntheirs")


def rows(results: Sequence[Result], ceilings: dict[str, float]) -> list[list[str]]:
    """One for every problem, pass and pair."""
    return [
        _row(result, which, ours, theirs, ceilings)
        for result in results
        for which in result.problem.passes
        for ours, theirs in result.pairs()
    ]


def results_table(results: Sequence[Result], ceilings: dict[str, float], title: str, caption: str) -> Table:
    """All of them."""
    return table((*_COLUMNS, *_SHARES), rows(results, ceilings), title, caption, words=4)


def summary(results: Sequence[Result]) -> list[str]:
    """Per cell, pass and pair: the ratio over all problems."""
    found: dict[str, list[float]] = {}
    for result in results:
        for which in result.problem.passes:
            for ours, theirs in result.pairs():
                ratio = result.ratio(which, theirs, ours)
                if ratio is not None:
                    line = f"{result.problem.cell} {which}, {ours[1]}, against {_named(theirs)}"
                    found.setdefault(line, []).append(ratio)
    return [
        f"{line}: {number(min(ratios))} to {number(max(ratios))}, median {number(statistics.median(ratios))} "
        f"of {len(ratios)}"
        for line, ratios in found.items()
    ]


def troubles(results: Sequence[Result]) -> list[str]:
    """A line for everyone who was not timed."""
    return [
        f"{'wrong, not timed' if outcome.wrong else 'failed'}: {_named(key)} on {result.problem.name}: {said}"
        for result in results
        for key, outcome in result.outcomes.items()
        if (said := outcome.wrong or outcome.failed)
    ]


def as_data(result: Result, ceilings: dict[str, float]) -> dict[str, Any]:
    """A result as JSON has it."""
    sizes = {name: value for name, value in result.problem._asdict().items() if isinstance(value, int)}
    return {
        "problem": result.problem.name,
        "cell": result.problem.cell,
        **sizes,
        "contenders": [_outcome_data(result, key, outcome, ceilings) for key, outcome in result.outcomes.items()],
        "ratios": [
            {
                "pass": which,
                "numbers": str(ours[1]),
                "against": _named(theirs),
                "rounds": result.ratios(which, theirs, ours),
                "median": result.ratio(which, theirs, ours),
            }
            for which in result.problem.passes
            for ours, theirs in result.pairs()
        ],
    }


def _row(result: Result, which: str, ours: Key, theirs: Key, ceilings: dict[str, float]) -> list[str]:
    mine, other = result.outcomes[ours], result.outcomes[theirs]
    steps = result.problem.work(which).steps
    share = result.share(which, ours, ceilings)
    per_step = [_scaled(outcome.median(which), 1e6 / steps) if steps else "" for outcome in (mine, other)]
    return [
        *(result.problem.name, which, str(ours[1]), theirs[0] if theirs[1] == ours[1] else _named(theirs)),
        *(_milliseconds(outcome, which) for outcome in (mine, other)),
        number(result.ratio(which, theirs, ours)),
        *per_step,
        *((number(100 * share[0]), share[1]) if share else ("", "")),
        *("" if outcome.error is None else f"{outcome.error:.1e}" for outcome in (mine, other)),
    ]


def _outcome_data(result: Result, key: Key, outcome: Outcome, ceilings: dict[str, float]) -> dict[str, Any]:
    def of(which: str) -> dict[str, Any]:
        steps, median = result.problem.work(which).steps, outcome.median(which)
        share = result.share(which, key, ceilings)
        return {
            "seconds": outcome.seconds.get(which, []),
            "median_seconds": median,
            "microseconds_per_step": median * 1e6 / steps if median and steps else None,
            "share_of_ceiling": share[0] if share else None,
            "binds": share[1] if share else None,
        }

    return {
        "name": key[0],
        "numbers": str(key[1]),
        "errors": {name: error if math.isfinite(error) else None for name, error in outcome.errors.items()},
        "wrong": outcome.wrong,
        "failed": outcome.failed,
        "passes": {which: of(which) for which in result.problem.passes},
    }


def _named(key: Key) -> str:
    return f"{key[0]} {key[1]}"


def _milliseconds(outcome: Outcome, which: str) -> str:
    if outcome.wrong:
        return "wrong"
    return "failed" if outcome.failed else _scaled(outcome.median(which), 1e3)


def _scaled(value: float | None, factor: float) -> str:
    return number(None if value is None else value * factor)
