"""Figures of a gradient flow: curves over time, heat maps over units and over layers. Legible in black and white.

Everything drawn is a logarithm to base 10 on a linear axis, whose ticks are written as powers: a log axis of matplotlib
ends where floats do, at 1e-308.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ._arguments import Array
from .flow_result import GradientFlow, StackFlow

_POINTS = 2000  # of a curve, columns or rows of a heat map: more than a figure has pixels
_CURVES, _HEAT_MAPS, _NAMES = 12, 3, 40  # at most, of one figure
_FLOATS = {  # log10 of the normal numbers at both ends
    "smallest float32": -37.93,
    "largest float32": 38.53,
    "smallest float64": -307.65,
    "largest float64": 308.25,
}
_LINES = ("-", "--", "-.", ":")
_MARKERS = "os^Dv*P"
_ZERO: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}
_BROKEN: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", "hatch": "xxxx", "linewidth": 0}


def plot(flow: GradientFlow, path_or_axes: str | os.PathLike[str] | Axes | None) -> Figure:
    """The curves alone in axes that are given, else a new figure, saved where a path is given."""
    depth_alone = isinstance(flow, StackFlow) and flow._is_of_depth_alone
    if isinstance(path_or_axes, Axes):
        (draw_layers if depth_alone else draw_curves)(path_or_axes, flow)
        path_or_axes.set_title(flow.title)
        figure = path_or_axes.get_figure(root=True)
        assert figure is not None
        return figure
    if not isinstance(path_or_axes, str | os.PathLike | None):
        raise TypeError(f"path_or_axes must be a path or matplotlib Axes, got {type(path_or_axes).__name__}")
    if depth_alone:
        figure = _depth_figure(flow)
    else:
        figure = _stack_figure(flow) if isinstance(flow, StackFlow) else _layer_figure(flow)
    if path_or_axes is not None:
        figure.savefig(path_or_axes, dpi=150)
    return figure


def draw_curves(axes: Axes, flow: GradientFlow) -> None:
    """A curve for every row, and how far the sequences of the batch are apart."""
    each = flow.log10_norm_per_sequence
    bands = each.ndim == 3 and each.shape[2] > 1
    shown = _spread(len(flow.names), _CURVES)
    for place, row in enumerate(shown):
        draw_curve(axes, flow.log10_norm[row], flow.names[row], place, sequences=each[row] if bands else None)
    label_curves(axes, flow.quantity, flow.log10_norm.shape[1])
    handles: list[Artist] = list(axes.get_legend_handles_labels()[0])
    if bands:
        handles.append(Patch(facecolor="0.75", label="band: smallest to largest of the sequences"))
    if len(shown) < len(flow.names):
        handles.append(Patch(facecolor="none", label=f"{len(shown)} of {len(flow.names)} rows"))
    axes.legend(handles=handles, handlelength=4, fontsize="small", ncols=1 + len(shown) // 9, framealpha=0.95)


def draw_curve(
    axes: Axes, norms: Array, label: str, place: int, *, sequences: Array | None = None, **style: Any
) -> None:
    """Norms (T,) in the line and marker of a place; steps without a gradient, or not finite, as signs at the bottom."""
    times, (highest,) = _thinned_curve(norms)
    finite = np.isfinite(highest)
    look: dict[str, Any] = {
        "linestyle": _LINES[place % len(_LINES)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "color": f"C{place % 10}",
        "markersize": 5,
        "markevery": _marked(finite, place),
    }
    (line,) = axes.plot(times, np.where(finite, highest, np.nan), label=label, **{**look, **style})
    if sequences is not None:
        lowest = np.where(sequences == -np.inf, np.inf, sequences).min(axis=1)
        _, (low, high) = _thinned_curve(-lowest, sequences.max(axis=1))
        inside = np.isfinite(low) & np.isfinite(high)
        axes.fill_between(times, -low, high, where=inside, color=line.get_color(), alpha=0.25, linewidth=0)
    for absent, marks in _without_place(highest, label, line):
        where = times[absent][:: max(1, absent.sum() // 50)]
        height = np.full(len(where), 0.015 + 0.02 * place)
        axes.plot(where, height, transform=axes.get_xaxis_transform(), markersize=4, **marks)


def label_curves(axes: Axes, quantity: str, steps: int) -> None:
    """Axes of the norms of `steps` timesteps."""
    axes.set(xlabel=_label("timestep t", steps), ylabel=f"norm of {_typeset(quantity)} (log scale)")
    axes.grid(alpha=0.3)
    label_powers(axes.yaxis)
    for name, value in _FLOATS.items():
        if axes.dataLim.y0 < value < axes.dataLim.y1:
            axes.axhline(value, color="0.35", linestyle=(0, (1, 4)), linewidth=1)
            text: dict[str, Any] = {"fontsize": "small", "color": "0.25", "va": "bottom"}
            axes.text(0.005, value, name, transform=axes.get_yaxis_transform(), **text)


def label_powers(axis: Axis) -> None:
    """Ticks of logarithms, written as powers of ten."""
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:z.6g}}}$"))


def draw_depth(axes: Axes, norms: Array, label: str, place: int, **style: Any) -> None:
    """Norms over all timesteps (layers + 1,) against the boundaries of layers, first at the top."""
    finite = np.isfinite(norms)
    look: dict[str, Any] = {"linestyle": _LINES[place % len(_LINES)], "marker": _MARKERS[place % len(_MARKERS)]}
    (line,) = axes.plot(
        np.where(finite, norms, np.nan), np.arange(len(norms)), label=label, color=f"C{place % 10}", **look, **style
    )
    for absent, marks in _without_place(norms, label, line):
        where = np.flatnonzero(absent)
        axes.plot(np.full(len(where), 0.03), where, transform=axes.get_yaxis_transform(), **marks)


def _without_place(norms: Array, label: str, line: Line2D) -> list[tuple[Array, dict[str, Any]]]:
    """Which norms a curve cannot show, and with what signs they are shown instead."""
    signs = ((norms == -np.inf, "x", "exactly zero"), (~(norms < np.inf), "+", "not finite"))
    look: dict[str, Any] = {"linestyle": "none", "color": line.get_color()}
    return [
        (which, {"marker": sign, "label": f"{label}: {what}", **look}) for which, sign, what in signs if which.any()
    ]


def label_depth(axes: Axes) -> None:
    """Axes of norms over the boundaries of layers."""
    axes.set_xlabel("norm over all timesteps (log scale)")
    axes.grid(alpha=0.3)
    label_powers(axes.xaxis)
    axes.tick_params(axis="x", labelrotation=45)


def _layer_figure(flow: GradientFlow) -> Figure:
    shown = [] if flow._log10_unit is None else _spread(len(flow.names), _HEAT_MAPS)
    figure = Figure(figsize=(13 if shown else 8, 5.5), layout="constrained")
    figure.suptitle(flow.title)
    grid = figure.add_gridspec(max(1, len(shown)), 2 if shown else 1)
    curves = figure.add_subplot(grid[:, 0])
    draw_curves(curves, flow)
    curves.set_title("Over batch and units")
    if shown:
        panels = [figure.add_subplot(grid[place, 1]) for place in range(len(shown))]
        _draw_units(figure, panels, flow, shown)
    return figure


def _draw_units(figure: Figure, panels: list[Axes], flow: GradientFlow, shown: list[int]) -> None:
    """Heat maps time x unit of these rows, in common colours."""
    maps = [flow.log10_unit[row].T for row in shown]
    colours = _colours(*maps)
    for axes, row, values in zip(panels, shown, maps, strict=True):
        image = _heat_map(axes, values, colours)
        axes.set(title=f"{flow.names[row]}, each unit over the batch", ylabel=_label("unit", len(values)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if axes is not panels[-1]:
            axes.tick_params(labelbottom=False)
    panels[-1].set_xlabel(_label("timestep t", maps[0].shape[1]))
    figure.colorbar(image, ax=panels, label=f"log10 of norm of {_typeset(flow.quantity)} per unit")


def _stack_figure(flow: StackFlow) -> Figure:
    rows = len(flow.names)
    named = _spread(rows, _NAMES)
    below = 2 + 0.25 * len(named)  # inches
    figure = Figure(figsize=(13, 4.5 + below), layout="constrained")
    figure.suptitle(flow.title)
    grid = figure.add_gridspec(2, 2, width_ratios=(2.2, 1), height_ratios=(4, below), wspace=0.08)
    curves = figure.add_subplot(grid[0, :])
    draw_curves(curves, flow)
    curves.set_title("Gradient of what enters each layer")
    axes = figure.add_subplot(grid[1, 0])
    image = _heat_map(axes, flow.log10_norm, _colours(flow.log10_norm))
    axes.set(title="Depth and time", xlabel=_label("timestep t", flow.log10_norm.shape[1]))
    axes.set_yticks(named, [flow.names[row] for row in named])
    axes.set_ylim(rows - 0.5, -0.5)
    figure.colorbar(image, ax=axes, label=f"log10 of norm of {_typeset(flow.quantity)}")
    depth = figure.add_subplot(grid[1, 1], sharey=axes)
    draw_depth(depth, flow.depth_log10_norm, "norm", 0)
    if len(depth.lines) > 1:
        depth.legend(fontsize="small")
    depth.set_title("Depth, over all timesteps")
    depth.tick_params(labelleft=False)
    label_depth(depth)
    return figure


def draw_layers(axes: Axes, flow: GradientFlow) -> None:
    """The norm at every boundary of layers of a flow without time, which are named, the first at the top."""
    assert isinstance(flow, StackFlow)
    draw_depth(axes, flow.depth_log10_norm, "norm", 0)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")
    label_depth(axes)
    axes.set_xlabel("norm of dL/dx over all rows (log scale)")
    named = _spread(len(flow.names), _NAMES)
    axes.set_yticks(named, [flow.names[row] for row in named])
    axes.set_ylim(len(flow.names) - 0.5, -0.5)


def _depth_figure(flow: GradientFlow) -> Figure:
    figure = Figure(figsize=(8, 2.5 + 0.2 * min(len(flow.names), _NAMES)), layout="constrained")
    figure.suptitle(flow.title)
    axes = figure.add_subplot()
    draw_layers(axes, flow)
    axes.set_title("Gradient of what enters each layer")
    return figure


def _heat_map(axes: Axes, values: Array, colours: Normalize) -> AxesImage:
    """Values (rows, T) as colours; hatched where they are zero, cross-hatched where they are not finite."""
    drawn, (tall, wide) = values, (_bin(size) for size in values.shape)
    for axis, size in enumerate((tall, wide)):
        drawn = _largest(drawn, size, axis)
    extent = (-0.5, drawn.shape[1] * wide - 0.5, -0.5, drawn.shape[0] * tall - 0.5)
    image = axes.imshow(
        np.ma.masked_invalid(drawn),
        cmap="viridis",
        norm=colours,
        origin="lower",
        aspect="auto",
        interpolation="none",
        extent=extent,
    )
    axes.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(-0.5, values.shape[0] - 0.5))
    axes.patch.set(**_ZERO)
    legend = [Patch(**_ZERO, label="exactly zero")] if (drawn == -np.inf).any() else []
    broken = _runs(~(np.max(drawn, axis=0) < np.inf))
    for first, last in broken:
        axes.axvspan(first * wide - 0.5, last * wide - 0.5, **_BROKEN)
    if broken:
        legend.append(Patch(**_BROKEN, label="not finite"))
    if legend:
        axes.legend(handles=legend, fontsize="small", loc="upper left", framealpha=1)
    return image


def _runs(marked: Array) -> list[tuple[int, int]]:
    """Begin and end of every run of true values."""
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _colours(*maps: Array) -> Normalize:
    """From the smallest to the largest finite value of all maps."""
    finite = np.concatenate([values[np.isfinite(values)] for values in maps])
    return Normalize(finite.min(), finite.max()) if finite.size else Normalize(-1, 0)


def _spread(rows: int, most: int) -> list[int]:
    """All rows, or as many as there is room for, first and last among them."""
    return [int(row) for row in np.linspace(0, rows - 1, min(rows, most)).round()]


def _bin(size: int) -> int:
    """How many neighbours are drawn as one, the largest of them."""
    return -(-size // _POINTS)


def _largest(values: Array, size: int, axis: int) -> Array:
    largest: Array = np.maximum.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis)
    return largest


def _thinned_curve(*curves: Array) -> tuple[Array, list[Array]]:
    """Timesteps, in the middle of those that are drawn as one, and the largest value of those."""
    steps = len(curves[0])
    size = _bin(steps)
    starts = np.arange(0, steps, size)
    return (starts + np.minimum(starts + size, steps) - 1) / 2, [_largest(curve, size, 0) for curve in curves]


def _marked(finite: Array, place: int) -> list[int]:
    """Where a curve has its markers: ten, not above those of other curves, and where one step stands alone."""
    apart = max(1, len(finite) // 10)
    beside = np.pad(finite, 1)
    alone = finite & ~beside[:-2] & ~beside[2:]
    return sorted({*range(place % 7 * apart // 7, len(finite), apart), *np.flatnonzero(alone).tolist()})


def _label(what: str, size: int) -> str:
    return what if _bin(size) == 1 else f"{what} (the largest of every {_bin(size)} is drawn)"


def _typeset(quantity: str) -> str:
    return quantity.replace("_t", "$_t$")
