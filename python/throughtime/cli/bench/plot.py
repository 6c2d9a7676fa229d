"""The ratios as bars. Legible in black and white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from throughtime._files import save_figure

from .result import Result

Panel = Mapping[str, Mapping[str, float]]  # ratios by problem and name
Look = tuple[str, str]  # colour, hatch

_COLOURS = ("#1f5f99", "#f0a030", "#d8d8d8", "#5aa469")
_HATCHES = ("", "///", "...", "\\\\", "xxx")
_GROUP = 0.81  # share of the distance between two problems that bars fill
_ACROSS = 3  # panels per row


def ratio_panels(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """A panel per cell and way of timing; in each, the ratios of every problem."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for result in results:
        for name, pair in result.case.ratios.items():
            if (ratio := result.ratio(*pair)) is not None:
                panel = panels.setdefault(f"{result.case.cell}, {result.timed}", {})
                panel.setdefault(result.case.problem, {})[name] = ratio
    return panels


def save_ratio_figure(path: Path, panels: Mapping[str, Panel], title: str, axis: str) -> None:
    """Panels of bars, a group per problem from top to bottom."""
    names = dict.fromkeys(name for panel in panels.values() for ratios in panel.values() for name in ratios)
    looks = dict(zip(names, zip(cycle(_COLOURS), cycle(_HATCHES), strict=False), strict=False))
    columns = min(_ACROSS, len(panels))
    rows = -(-len(panels) // columns)
    bars = max(sum(map(len, panel.values())) + len(panel) for panel in panels.values())
    figure = Figure(figsize=(2.5 + 4.5 * columns, rows * (1.5 + 0.2 * bars)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    all_axes = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, panel) in zip(all_axes, panels.items(), strict=False):
        _draw(axes, panel, looks)
        axes.set(title=name, xlabel=f"{axis} (log scale)")
    for axes in all_axes[len(panels) :]:
        axes.remove()
    handles = [Patch(facecolor=c, hatch=hatch, edgecolor="black", label=name) for name, (c, hatch) in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3, handleheight=1.5)
    save_figure(figure, path)


def _draw(axes: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    height = _GROUP / max(map(len, panel.values()))
    for place, ratios in enumerate(panel.values()):
        top = place - height * (len(ratios) - 1) / 2
        for number, (name, ratio) in enumerate(ratios.items()):
            colour, hatch = looks[name]
            drawn = axes.barh(
                top + number * height, ratio - 1, height, left=1, color=colour, hatch=hatch, edgecolor="black"
            )
            axes.bar_label(drawn, [f"{ratio:.0f}" if ratio >= 10 else f"{ratio:#.2g}"], padding=3, fontsize=8)
    found = [ratio for ratios in panel.values() for ratio in ratios.values()]
    axes.axvline(1, color="black", linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xlim(min(1.0, *found) / 1.4, max(1.0, *found) * 1.4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(panel)), list(panel))
    axes.set_ylim(len(panel) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
