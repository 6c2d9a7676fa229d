"""The ratios as bars. Legible in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from throughtime._files import save_figure

from .measure import Result
from .problems import CELLS

_LOOKS = dict(zip(CELLS, (("#1f5f99", ""), ("#f0a030", "///"), ("#d8d8d8", "...")), strict=True))  # colour and hatch
_BAR = 0.27  # of the distance of two problems


class Bar(NamedTuple):
    """A ratio of one cell in a group of bars."""

    group: str
    cell: str
    ratio: float


class Panel(NamedTuple):
    """The bars that compare two contenders."""

    title: str
    label: str  # of the axis
    bars: list[Bar]


def ratio_panels(results: Sequence[Result]) -> list[Panel]:
    """One panel per contender, one group per problem, one bar per cell."""
    names = list(dict.fromkeys(name for result in results for name in result.others if result.ratio(name)))
    return [
        Panel(
            f"against {name}",
            f"time of {name} / time of throughtime (log scale)",
            [
                Bar(_group(result), result.task.cell, ratio)
                for result in results
                if name in result.outcomes and (ratio := result.ratio(name))
            ],
        )
        for name in names
    ]


def save_ratio_figure(path: Path, panels: Sequence[Panel], title: str) -> None:
    """Panels side by side, groups of bars one below the other."""
    groups = list(dict.fromkeys(bar.group for panel in panels for bar in panel.bars))
    figure = Figure(figsize=(2.2 + 5 * len(panels), 1.9 + 0.6 * len(groups)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw(axes, panel, groups)
    all_axes[0].set_yticks(range(len(groups)), groups)
    all_axes[0].set_ylim(len(groups) - 0.5, -0.5)
    cells = {bar.cell for panel in panels for bar in panel.bars}
    looks = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", label=cell)
        for cell, (colour, hatch) in _LOOKS.items()
        if cell in cells
    ]
    figure.legend(handles=looks, loc="outside right upper", handlelength=3, handleheight=1.5)
    save_figure(figure, path)


def _draw(axes: Axes, panel: Panel, groups: Sequence[str]) -> None:
    for bar in panel.bars:
        colour, hatch = _LOOKS[bar.cell]
        beside = [other.cell for other in panel.bars if other.group == bar.group]
        drawn = axes.barh(
            groups.index(bar.group) + _BAR * (beside.index(bar.cell) - (len(beside) - 1) / 2),
            bar.ratio - 1,
            left=1,
            height=_BAR,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.8,
        )
        axes.bar_label(drawn, [f"{bar.ratio:.0f}" if bar.ratio >= 10 else f"{bar.ratio:#.2g}"], padding=3, fontsize=8)
    ratios = [bar.ratio for bar in panel.bars]
    axes.axvline(1, color="black", linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xlim(min(1.0, *ratios) / 1.4, max(1.0, *ratios) * 1.4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title=panel.title, xlabel=panel.label)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _group(result: Result) -> str:
    return result.problem if result.precision == "highest" else f"{result.problem}, {result.precision}"
