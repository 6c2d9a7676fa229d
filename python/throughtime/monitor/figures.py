"""Figures of a monitor: step of the training x lag as a heat map, gamma and horizon over training, and the loss.

Legible in black and white. A figure is at most 1600 pixels high.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .._arguments import Array
from .._text import visible
from ..analysis.flow_figures import BROKEN, ZERO, check_path, colour_scale, figure_of, legend_over, runs, saved
from ..analysis.power_axis import label_powers
from ..analysis.shown_figure import ShownFigure
from ..analysis.thinning import bin_size, largest, spread
from .series import Monitor, Series, series_of

ROWS = 6  # the most that one figure shows
_TITLE = 44  # characters of a panel's title
_STEP = "step (backward passes)"
_TICK = 0.19  # inches of height that a tick's label takes
_SUBJECT = {"full": "a loss on the last step", "float": "the loss of the training"}
_CURVE: dict[str, Any] = {"color": "black", "linewidth": 1.8}
_NEVER = "gradient never below 1e-3 of its start"
_UNDEFINED = "not defined: no gradient, or not finite"


def plot(monitor: Monitor, path_or_axes: str | os.PathLike[str] | Axes | None, layer: str | None) -> Figure:
    """Draw all panels into a new figure, and save it if a path is given; or one heat map into the given axes."""
    series = series_of(monitor.history, layer)
    if isinstance(path_or_axes, Axes):
        if len(series) > 1:
            names = ", ".join(repr(one.place) for one in series)
            raise ValueError(f"axes show one layer and direction; choose it with layer, one of {names}")
        return _into_axes(path_or_axes, series[0])
    check_path(path_or_axes)
    return saved(_figure(monitor, series), path_or_axes)


def _into_axes(axes: Axes, series: Series) -> Figure:
    mesh, handles = draw_lags(axes, series, _scale([series]))
    axes.set_xlabel(_STEP)
    axes.set_title(_short(series.place), loc="left", pad=24 if handles else None, parse_math=False)
    legend_over(axes, handles)
    figure = figure_of(axes)
    if mesh is not None:
        add_colours(figure, mesh, [axes])
    return figure


def _figure(monitor: Monitor, series: Sequence[Series]) -> Figure:
    shown = [series[i] for i in spread(len(series), ROWS)]
    rows = len(shown)
    figure = ShownFigure(figsize=(13, 4.6 if rows == 1 else 1.2 + 1.57 * rows), layout="constrained")
    some = "" if rows == len(series) else f"; {rows} of {len(series)} rows, plot(layer=...) shows others"
    figure.suptitle(f"Gradient through time during training, for {_SUBJECT[monitor.range]}{some}")
    main: Figure | SubFigure = figure
    if monitor.losses:
        halves = figure.add_gridspec(1, 2, width_ratios=(4.4, 1.3))
        main = figure.add_subfigure(halves[0])
        _draw_loss_beside(figure.add_subfigure(halves[1]), monitor.losses, rows)
    grid = main.add_gridspec(rows, 3, width_ratios=(2.1, 1, 1))
    scale = _scale(shown)
    heats: list[Axes] = []
    meshes: list[QuadMesh] = []
    handles: list[Artist] = []
    for row, one in enumerate(shown):
        heat, gamma, horizon = panels = [main.add_subplot(grid[row, column]) for column in range(3)]
        mesh, found = draw_lags(heat, one, scale)
        heat.set_title(_short(one.place), loc="left", fontsize="medium", parse_math=False)
        handles += [*found, *draw_gamma(gamma, one), *draw_horizon(horizon, one)]
        gamma.set_title("gamma" if row == 0 else "", loc="left", fontsize="medium")
        horizon.set_title("horizon(1e-3)" if row == 0 else "", loc="left", fontsize="medium")
        _share_steps(panels, shown, last=row == rows - 1)
        heats.append(heat)
        meshes += [mesh] if mesh is not None else []
    if meshes:
        add_colours(main, meshes[0], heats)
    _legend_below(figure, handles)
    return figure


def _draw_loss_beside(part: SubFigure, losses: Sequence[float], rows: int) -> None:
    """At the right, as high as at most two rows."""
    axes = part.add_subplot(part.add_gridspec(rows, 1)[: min(2, rows), 0])
    draw_losses(axes, losses)
    axes.set_title("loss", loc="left", fontsize="medium")
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")


def panels(series: Series) -> tuple[Figure, Figure]:
    """For a page with headings: the heat map of a series, and gamma above horizon."""
    lags, course = Figure(figsize=(5.6, 3.6), layout="constrained"), Figure(figsize=(5.6, 3.6), layout="constrained")
    heat = lags.subplots()
    mesh, signs = draw_lags(heat, series, _scale([series]))
    heat.set_xlabel(_STEP)
    if mesh is not None:
        add_colours(lags, mesh, [heat])
    _legend_below(lags, signs)
    upper, lower = course.subplots(2, 1, sharex=True)
    handles = [*draw_gamma(upper, series), *draw_horizon(lower, series)]
    upper.set_title("gamma", loc="left", fontsize="medium")
    lower.set_title("horizon(1e-3)", loc="left", fontsize="medium")
    lower.set_xlabel(_STEP)
    _legend_below(course, handles)
    return lags, course


def loss_panel(losses: Sequence[float]) -> Figure:
    """The loss alone."""
    figure = Figure(figsize=(5.6, 3), layout="constrained")
    axes = figure.subplots()
    draw_losses(axes, losses)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")
    return figure


def _share_steps(panels: Sequence[Axes], shown: Sequence[Series], *, last: bool) -> None:
    """The same range of steps in all panels; the lowest ones say what it is."""
    ends = [_edges(one.steps)[[0, -1]] for one in shown]
    for axes in panels:
        axes.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))
        _mark_whole_numbers(axes, 4 if axes is not panels[0] else 8)
        axes.tick_params(labelbottom=last)
        if last:
            axes.set_xlabel(_STEP)


def draw_lags(axes: Axes, series: Series, scale: Normalize) -> tuple[QuadMesh | None, list[Artist]]:
    """Draw the norm by step and lag; returns the colours, None without timesteps, and the handles of a legend.

    Zeros are hatched and values that are not finite cross-hatched. Steps whose sequences are too short stay white.
    """
    names, values, exists = series.by_lag()
    axes.set_ylabel("lag (steps back)")
    steps, size = series.steps, bin_size(len(series.records))
    values, exists = largest(values, size, 1), largest(exists, size, 1)
    edges = _edges((steps[::size] + largest(steps, size, 0)) / 2)
    axes.set_xlim(edges[0], edges[-1])
    _mark_whole_numbers(axes)
    if not names:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no timesteps", ha="center", va="center", transform=axes.transAxes)
        return None, []
    heights = np.arange(len(names) + 1) - 0.5
    look: dict[str, Any] = {"cmap": "viridis", "norm": scale, "rasterized": True}
    mesh = axes.pcolormesh(edges, heights, np.ma.masked_invalid(values), **look)
    handles: list[Artist] = []
    for cells, style, label in (
        (exists & (values == -np.inf), ZERO, "exactly zero"),
        (exists & ~(values < np.inf), BROKEN, "not finite"),
    ):
        for lag in np.flatnonzero(cells.any(axis=1)):
            spans = [(edges[first], edges[last] - edges[first]) for first, last in runs(cells[lag])]
            axes.broken_barh(spans, (lag - 0.5, 1), **style)
        handles += [Patch(**style, label=label)] if cells.any() else []
    height = axes.get_position().height * figure_of(axes).get_figheight()
    named = spread(len(names), max(2, int(height / _TICK)))
    axes.set_yticks(named, [names[i] for i in named])
    axes.set_ylim(-0.5, len(names) - 0.5)
    return mesh, handles


def add_colours(figure: Figure | SubFigure, mesh: QuadMesh, panels: Sequence[Axes]) -> None:
    """A colour bar for these panels, with powers of ten."""
    aspect = 20 if len(panels) == 1 else 9 * len(panels)
    bar = figure.colorbar(mesh, ax=list(panels), label="norm of dL/dh$_t$ (log scale)", aspect=aspect)
    label_powers(bar.ax.yaxis)


def draw_gamma(axes: Axes, series: Series) -> list[Artist]:
    """Draw gamma over training, on an axis of powers of ten; returns the handles of a legend."""
    with np.errstate(divide="ignore"):
        handles = _draw_course(axes, series.steps, np.log10(series.gamma))
    axes.set_ylabel("factor per step")
    low, high = axes.dataLim.intervaly
    if low - 0.3 < 0 < high + 0.3:  # less than a factor of 2 away
        axes.axhline(0, color="0.35", linestyle=(0, (1, 3)), linewidth=1)
    return handles


def draw_horizon(axes: Axes, series: Series) -> list[Artist]:
    """Draw horizon(1e-3) over training; returns the handles of a legend."""
    handles = _draw_course(axes, series.steps, np.log10(series.horizon))
    axes.set_ylabel("steps back")
    return handles


def _draw_course(axes: Axes, steps: Array, values: Array) -> list[Artist]:
    """Draw logarithms over training, with signs at the upper edge for infinity and at the lower for NaN."""
    finite = np.isfinite(values)
    axes.plot(steps, np.where(finite, values, np.nan), color="black", linewidth=1.2, **_markers(len(steps)))
    _mark_whole_numbers(axes)
    axes.grid(alpha=0.3)
    label_powers(axes.yaxis)
    if not finite.any():
        axes.set_yticks([])
    handles: list[Artist] = []
    signs = ((values == np.inf, "^", 0.95, _NEVER), (np.isnan(values), "x", 0.05, _UNDEFINED))
    for which, sign, height, label in signs:
        if which.any():
            where = steps[which][:: max(1, int(which.sum()) // 40)]
            look: dict[str, Any] = {"marker": sign, "linestyle": "none", "color": "black", "markersize": 5}
            axes.plot(where, np.full(len(where), height), transform=axes.get_xaxis_transform(), **look)
            handles.append(Line2D([], [], label=label, **look))
    return handles


def draw_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Draw every loss and, of 80 or more, the moving mean; the first has the number 1."""
    steps, span = np.arange(1, len(losses) + 1), len(losses) // 40
    several = span > 1
    look: dict[str, Any] = {"color": "0.7", "linewidth": 0.8} if several else _CURVE
    axes.plot(steps, losses, label="each loss", **look, **_markers(len(losses)))
    _mark_whole_numbers(axes)
    if several:
        smooth = np.convolve(losses, np.full(span, 1 / span), mode="valid")
        axes.plot(steps[span - 1 :], smooth, label=f"mean of {span} losses", **_CURVE)
    axes.set(xlabel="losses added", ylabel="loss")
    axes.grid(alpha=0.3)


def _markers(points: int) -> dict[str, Any]:
    """Points of a curve, if they are few: without them, one between two that are not finite would not be seen."""
    return {"marker": "o", "markersize": 3} if points <= 60 else {}


def _mark_whole_numbers(axes: Axes, most: int | Literal["auto"] = "auto") -> None:
    """Ticks at whole steps, one if there is only one step."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))


def _legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """One entry for each label."""
    unique = {str(handle.get_label()): handle for handle in handles}
    if unique:
        look: dict[str, Any] = {"ncols": min(5, len(unique)), "fontsize": "small"}
        figure.legend(handles=list(unique.values()), loc="outside lower right", **look)


def _scale(series: Sequence[Series]) -> Normalize:
    return colour_scale(*(one.by_lag()[1] for one in series))


def _edges(centres: Array) -> Array:
    """Halfway between neighbours, and as far beyond the ends."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[:-1] + centres[1:]) / 2
    edges: Array = np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])
    return edges


def _short(name: str) -> str:
    """A name that fits above a panel: its end, which tells layers apart."""
    name = visible(name)
    return name if len(name) <= _TITLE else "…" + name[-_TITLE:]
