"""Ticks for logarithms on a linear axis, because matplotlib's log axis ends at 1e-308, the limit of floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import Formatter, Locator, MaxNLocator

from .._arguments import Array


class _PowerLocator(Locator):
    """Tick positions for logarithms: powers of ten; in a narrow range, round numbers."""

    def __call__(self) -> Any:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = min(vmin, vmax), max(vmin, vmax)
        if high - low >= 4:
            return MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True).tick_values(low, high)
        decade = np.floor(low)
        if high - low >= 1:
            return np.concatenate([decade + n + np.log10([1, 2, 5]) for n in range(int(np.ceil(high - decade)) + 1)])
        ends = 10.0 ** (low - decade), 10.0 ** (high - decade)
        numbers: Array = np.asarray(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(*ends))
        return decade + np.log10(numbers[numbers > 0])


class _PowerFormatter(Formatter):
    """Writes logarithms as powers of ten; if not all are integers, as numbers with enough digits to tell them apart."""

    def __call__(self, value: float, _: int | None = None) -> str:
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        if all(value == round(value) for value in values):
            return [f"$10^{{{value:z.6g}}}$" for value in values]
        close = float(np.min(np.diff(np.sort(values)), initial=1.0)) / 10
        return [_number_text(value, close) for value in values]


def _number_text(log10: float, close: float) -> str:
    """The number 10**log10, rounded so that its logarithm is off by at most `close`."""
    exponent = int(np.floor(log10 + 1e-9))
    for digits in range(12):
        factor = round(10 ** (log10 - exponent), digits)
        if abs(np.log10(factor) - (log10 - exponent)) <= close:
            break
    if -4 < exponent < 4:
        return f"{factor * 10.0**exponent:.{max(0, digits - exponent)}f}"
    return f"$10^{{{exponent}}}$" if factor == 1 else f"${factor:.{digits}f} \\times 10^{{{exponent}}}$"


def label_powers(axis: Axis) -> None:
    """Label logarithms as powers of ten; in a narrow range, as numbers."""
    axis.set_major_locator(_PowerLocator())
    axis.set_major_formatter(_PowerFormatter())
