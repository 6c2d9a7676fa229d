"""Figures as text for a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from .result import Outcome


def number(value: float | None, factor: float = 1.0, form: str = "") -> str:
    """`value * factor` with at least three digits and no exponent; blank if there is no value."""
    if value is None:
        return ""
    scaled = value * factor
    return format(scaled, form or (".0f" if scaled >= 100 else ".1f" if scaled >= 10 else ".2f"))


def milliseconds(outcome: Outcome | None) -> str:
    """The median time, or why there is none."""
    if outcome is None:
        return ""
    if outcome.wrong or outcome.failed:
        return "wrong" if outcome.wrong else "failed"
    return number(outcome.median, 1e3)


def megabytes(count: int | None) -> str:
    """Bytes in units of 10^6."""
    return number(count, 1e-6)


def memory(outcome: Outcome | None) -> str:
    """The peak memory in units of 10^6 bytes."""
    return megabytes(outcome.memory if outcome else None)


def error(outcome: Outcome | None, beside: Outcome | None = None) -> str:
    """The largest error, over the tensors that both have."""
    if outcome is None:
        return ""
    shared = (outcome if beside is None else beside).errors
    return number(max((outcome.errors[name] for name in outcome.errors if name in shared), default=None), form=".1e")


def median(values: Sequence[float]) -> str:
    """Blank if there are none."""
    return number(statistics.median(values)) if values else ""


def spread(values: Sequence[float]) -> str:
    """The lowest and the highest."""
    return f"{number(min(values))}, {number(max(values))}" if values else ""


def finite(value: float | None) -> float | None:
    """`value` if JSON can hold it, else None."""
    return value if value is not None and math.isfinite(value) else None
