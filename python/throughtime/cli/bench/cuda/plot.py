"""The ratios as marks over the problems. Legible in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from throughtime._files import save_figure

from .measure import Result

_MARKS = "osD^vP*Xhd"


def save_ratios(path: Path, results: Sequence[Result], title: str) -> bool:
    """One panel per cell and pass, one series per pair; False, and no file, where there is no ratio."""
    panels = {
        panel: series
        for panel in dict.fromkeys((each.problem.cell, which) for each in results for which in each.problem.passes)
        if (series := _series(panel, results))
    }
    if not panels:
        return False
    widest = max(len({place for points in series.values() for place in points}) for series in panels.values())
    figure = Figure(figsize=(5 + 0.45 * widest, 3.6 * len(panels)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axes, (panel, series) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        _draw(axes, ", ".join(panel), series)
    save_figure(figure, path)
    return True


def _series(panel: tuple[str, str], results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Per pair, the ratio by the problem's sizes."""
    cell, which = panel
    found: dict[str, dict[str, float]] = {}
    for result in (result for result in results if result.problem.cell == cell and which in result.problem.passes):
        for ours, theirs in result.pairs():
            ratio = result.ratio(which, theirs, ours)
            if ratio is not None:
                sizes = result.problem.name.removeprefix(cell + " ")
                found.setdefault(f"{ours[1]} against {theirs[0]} {theirs[1]}", {})[sizes] = ratio
    return found


def _draw(axes: Axes, title: str, series: dict[str, dict[str, float]]) -> None:
    places = list(dict.fromkeys(place for points in series.values() for place in points))
    for mark, (name, points) in zip(_MARKS * len(series), series.items(), strict=False):
        where = [places.index(place) for place in points]
        axes.plot(where, list(points.values()), mark, markerfacecolor="none", label=name)
    axes.axhline(1, color="black", linewidth=1.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(places)), places, rotation=60, ha="right", fontsize=7)
    axes.set(title=title, ylabel="their time / ours (log scale)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
