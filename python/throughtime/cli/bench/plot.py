"""The ratios as bars. Legible in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from .measure import Result
from .problems import CELLS

_LOOKS = dict(zip(CELLS, (("#1f5f99", ""), ("#f0a030", "///"), ("#d8d8d8", "...")), strict=True))  # colour and hatch
_BAR = 0.27  # of the distance of two problems


def save_ratio_figure(path: Path, results: Sequence[Result], title: str) -> None:
    """One panel per contender, one group of bars per problem, one bar per cell."""
    names = list(dict.fromkeys(name for result in results for name in result.others if result.ratio(name)))
    groups = list(dict.fromkeys(_group(result) for result in results if result.others))
    figure = Figure(figsize=(2.2 + 5 * len(names), 1.9 + 0.6 * len(groups)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, name, groups, results)
    panels[0].set_yticks(range(len(groups)), groups)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    cells = {result.task.cell for result in results if result.others}
    looks = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", label=cell)
        for cell, (colour, hatch) in _LOOKS.items()
        if cell in cells
    ]
    figure.legend(handles=looks, loc="outside right upper", handlelength=3, handleheight=1.5)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, name: str, groups: Sequence[str], results: Sequence[Result]) -> None:
    shown = [(result, ratio) for result in results if name in result.outcomes and (ratio := result.ratio(name))]
    for result, ratio in shown:
        colour, hatch = _LOOKS[result.task.cell]
        beside = [other.task.cell for other, _ in shown if _group(other) == _group(result)]
        bar = axes.barh(
            groups.index(_group(result)) + _BAR * (beside.index(result.task.cell) - (len(beside) - 1) / 2),
            ratio - 1,
            left=1,
            height=_BAR,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.8,
        )
        axes.bar_label(bar, [f"{ratio:.0f}" if ratio >= 10 else f"{ratio:#.2g}"], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xlim(min(1.0, *(ratio for _, ratio in shown)) / 1.4, max(1.0, *(ratio for _, ratio in shown)) * 1.4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title=f"against {name}", xlabel=f"time of {name} / time of throughtime (log scale)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _group(result: Result) -> str:
    return result.problem if result.precision == "highest" else f"{result.problem}, {result.precision}"
