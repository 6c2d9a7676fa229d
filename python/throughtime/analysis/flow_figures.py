"""Figures of a gradient flow: curves over time, heat maps over units and over layers. Legible in black and white.

All values are logarithms to base 10 on a linear axis (power_axis.py). Legends never cover data. A figure is at most
1600 pixels high.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .._arguments import Array
from .._files import save_figure
from .power_axis import label_powers
from .shown_figure import ShownFigure
from .thinning import bin_size, binned_label, largest, spread, thinned_curve

_CURVES, _HEAT_MAPS, _NAMES = 12, 8, 16  # the most that one figure shows
_DPI = 150
_IS_CURVE, _IS_SIGN = "gradient flow", "no norm"  # gids of a curve's line and band, and of markers in its place
_FLOATS = {  # log10 of the smallest and the largest normal numbers
    "smallest float32": -37.93,
    "largest float32": 38.53,
    "smallest float64": -307.65,
    "largest float64": 308.25,
}
_LINES = ("-", "--", "-.", ":")
_MARKERS = "os^Dv*P"
ZERO: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}
BROKEN: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", "hatch": "xxxx", "linewidth": 0}


class Flow(Protocol):
    """The attributes of a `GradientFlow` that the figures read."""

    quantity: str
    title: str
    names: tuple[str, ...]
    steps: int
    fault: str | None
    log10_norm_per_sequence: Array
    _log10_unit: Array | None

    @property
    def log10_norm(self) -> Array: ...
    @property
    def log10_unit(self) -> Array: ...


class Stack(Flow, Protocol):
    """The attributes of a `StackFlow` that the figures read."""

    @property
    def depth_log10_norm(self) -> Array: ...
    @property
    def _is_of_depth_alone(self) -> bool: ...


def _is_stack(flow: Flow) -> TypeGuard[Stack]:
    return hasattr(type(flow), "depth_log10_norm")


class _Curve(NamedTuple):
    """A row of a flow, and its label."""

    flow: Flow
    row: int
    label: str


def plot(flow: Flow, path_or_axes: str | os.PathLike[str] | Axes | None, label: str | None) -> Figure:
    """Draw the curves alone into the given axes, or a new figure; save it if a path is given."""
    title = flow.title if label is None else "Gradient flow"
    depth_alone = _is_stack(flow) and flow._is_of_depth_alone
    if isinstance(path_or_axes, Axes):
        if depth_alone:
            return _layers_into_axes(path_or_axes, {label: flow}, title)
        return _into_axes(path_or_axes, _curves_of(flow, label), title)
    check_path(path_or_axes)
    if depth_alone:
        figure = _depth_figure({label: flow})
        _set_title(figure, flow, label)
    else:
        figure = _stack_figure(flow, label) if _is_stack(flow) else _layer_figure(flow, label)
    return saved(figure, path_or_axes)


def plot_flows(flows: Mapping[str, Flow], path_or_axes: str | os.PathLike[str] | Axes | None) -> Figure:
    """Draw the curves of several flows into the given axes, or into a new figure; save it if a path is given."""
    if all(_is_stack(flow) and flow._is_of_depth_alone for flow in flows.values()):
        if isinstance(path_or_axes, Axes):
            return _layers_into_axes(path_or_axes, flows, "Gradient flow")
        check_path(path_or_axes)
        figure = _depth_figure(flows)
        figure.suptitle("Gradient flow")
        return saved(figure, path_or_axes)
    curves = [curve for name, flow in flows.items() for curve in _curves_of(flow, name)]
    if isinstance(path_or_axes, Axes):
        return _into_axes(path_or_axes, curves, "Gradient flow")
    check_path(path_or_axes)
    figure = ShownFigure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    _legend_beside(axes, draw_curves(axes, curves))
    axes.set_title("Gradient flow")
    return saved(figure, path_or_axes)


def _into_axes(axes: Axes, curves: Sequence[_Curve], title: str) -> Figure:
    handles = draw_curves(axes, curves)
    axes.set_title(title, parse_math=False)
    legend_in_headroom(axes, handles)
    return figure_of(axes)


def figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def check_path(path: object) -> None:
    if not isinstance(path, str | os.PathLike | None):
        raise TypeError(f"path_or_axes must be a path or matplotlib Axes, got {type(path).__name__}")


def saved(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    if path is not None:
        save_figure(figure, path, _DPI)
    return figure


def _curves_of(flow: Flow, label: str | None) -> list[_Curve]:
    if label is None:
        return [_Curve(flow, row, name) for row, name in enumerate(flow.names)]
    alone = len(flow.names) == 1
    return [_Curve(flow, row, label if alone else f"{label}: {name}") for row, name in enumerate(flow.names)]


def draw_curves(axes: Axes, curves: Sequence[_Curve]) -> list[Artist]:
    """Draw a curve for every row and a band for the range of the batch. Returns the handles for a legend.

    For several sequences, the curve is the median and the band the range of those that carry a gradient at a step.
    """
    shown = spread(len(curves), _CURVES)
    before = sum(line.get_gid() == _IS_CURVE for line in axes.lines)
    for place, (flow, row, label) in enumerate([curves[i] for i in shown], before):
        each = flow.log10_norm_per_sequence[row, : _steps(flow)]
        if each.ndim == 2 and each.shape[1] > 1:
            draw_curve(axes, _median(each), label, place, sequences=each)
        else:
            draw_curve(axes, flow.log10_norm[row, : _steps(flow)], label, place)
    flows = [curve.flow for curve in curves]
    label_curves(axes, " or ".join(dict.fromkeys(flow.quantity for flow in flows)), max(map(_steps, flows)))
    axes.set_xlabel(_time_label(max(flows, key=_steps)))
    handles: list[Artist] = list(axes.get_legend_handles_labels()[0])
    if any(part.get_gid() == _IS_CURVE for part in axes.collections):
        handles.append(Patch(facecolor="0.75", label="line: median of the\nsequences, band: range"))
    if len(shown) < len(curves):
        handles.append(Patch(facecolor="none", label=f"{len(shown)} of {len(curves)} rows"))
    return handles


def _median(sequences: Array) -> Array:
    """For each step of (T, B), the median of the norms that are not zero; NaN if any norm is NaN."""
    ordered, count = np.sort(sequences, axis=1), sequences.shape[1]
    zeros = (ordered == -np.inf).sum(axis=1)
    middle = [np.minimum(zeros + (count - zeros - odd) // 2, count - 1) for odd in (1, 0)]
    low, high = (np.take_along_axis(ordered, place[:, None], axis=1)[:, 0] for place in middle)
    with np.errstate(invalid="ignore"):  # inf - inf
        median = np.where(low == high, low, low + (high - low) / 2)
    return np.where(np.isnan(ordered[:, -1]), np.nan, median)


def _steps(flow: Flow) -> int:
    """Number of timesteps to draw: those beyond the longest sequence are padding."""
    return max(1, flow.steps)


def _time_label(flow: Flow) -> str:
    label = binned_label("timestep t", _steps(flow))
    return label if flow.steps == flow.log10_norm.shape[1] else f"{label}, padding from {flow.steps} on left out"


def _legend(axes: Axes, handles: Sequence[Artist], **look: Any) -> Legend:
    legend = axes.legend(handles=handles, handlelength=4, fontsize="small", framealpha=0.95, **look)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def _legend_beside(axes: Axes, handles: Sequence[Artist]) -> None:
    """Draw a legend to the right of axes with a constrained layout."""
    _legend(axes, handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def legend_over(axes: Axes, handles: Sequence[Artist]) -> None:
    """Draw a short legend above the right end of axes whose title is on the left."""
    if handles:
        look = {"frameon": False, "borderaxespad": 0, "borderpad": 0.1}
        _legend(axes, handles, loc="lower right", bbox_to_anchor=(1, 1.01), ncols=len(handles), **look)


def legend_in_headroom(axes: Axes, handles: Sequence[Artist]) -> None:
    """Draw a legend inside the axes, above all curves; extends the y axis to make room."""
    axes.autoscale(axis="y")
    figure_of(axes).draw_without_rendering()
    for columns in (4, 3, 2, 1):
        legend = _legend(axes, handles, loc="upper left", ncols=columns)
        if legend.get_window_extent().width < axes.bbox.width:
            break
    share = min(0.6, legend.get_window_extent().height / axes.bbox.height + 0.04)
    low, high = axes.get_ylim()
    axes.set_ylim(low, low + (high - low) / (1 - share))


def draw_curve(
    axes: Axes, norms: Array, label: str, place: int, *, sequences: Array | None = None, **style: Any
) -> None:
    """Draw norms (T,) in line style number `place`; markers at the bottom show steps whose norm is 0 or not finite."""
    times, (highest,) = thinned_curve(norms)
    finite = np.isfinite(highest)
    look: dict[str, Any] = {
        "linestyle": _LINES[place % len(_LINES)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "color": f"C{place % 10}",
        "markersize": 5,
        "markevery": marked(finite, place),
        "gid": _IS_CURVE,
    }
    (line,) = axes.plot(times, np.where(finite, highest, np.nan), label=label, **{**look, **style})
    if sequences is not None:
        lowest = np.where(sequences == -np.inf, np.inf, sequences).min(axis=1)
        _, (low, high) = thinned_curve(-lowest, sequences.max(axis=1))
        look = {"color": line.get_color(), "alpha": 0.25, "linewidth": 0, "gid": _IS_CURVE}
        axes.fill_between(times, -low, high, where=np.isfinite(low) & np.isfinite(high), **look)
    for absent, marks in _without_place(highest, label, line):
        where = times[absent][:: max(1, absent.sum() // 50)]
        row = sum(other.get_gid() == _IS_SIGN for other in axes.lines)
        height = np.full(len(where), 0.015 + 0.02 * row)
        axes.plot(where, height, gid=_IS_SIGN, transform=axes.get_xaxis_transform(), markersize=4, **marks)


def label_curves(axes: Axes, quantity: str, steps: int) -> None:
    """Label the axes of curves over `steps` timesteps, and mark the limits of float types within their range."""
    axes.set(xlabel=binned_label("timestep t", steps), ylabel=f"norm of {_typeset(quantity)} (log scale)")
    axes.grid(alpha=0.3)
    label_powers(axes.yaxis)
    told = {text.get_text() for text in axes.texts}
    floats = _FLOATS if axes.dataLim.height < 5000 else {}  # on a longer axis their names would cover each other
    for name, value in floats.items():
        if axes.dataLim.y0 < value < axes.dataLim.y1 and name not in told:
            axes.axhline(value, color="0.35", linestyle=(0, (1, 4)), linewidth=1)
            text: dict[str, Any] = {"fontsize": "small", "color": "0.25", "va": "bottom"}
            axes.text(0.005, value, name, transform=axes.get_yaxis_transform(), **text)


def draw_depth(axes: Axes, norms: Array, label: str, place: int, **style: Any) -> None:
    """Draw norms over all timesteps (layers + 1,) against the boundaries between layers."""
    finite = np.isfinite(norms)
    look: dict[str, Any] = {"linestyle": _LINES[place % len(_LINES)], "marker": _MARKERS[place % len(_MARKERS)]}
    look |= {"color": f"C{place % 10}", "markevery": marked(finite, place)}
    (line,) = axes.plot(np.where(finite, norms, np.nan), np.arange(len(norms)), label=label, **{**look, **style})
    for absent, marks in _without_place(norms, label, line):
        where = np.flatnonzero(absent)
        axes.plot(np.full(len(where), 0.03), where, transform=axes.get_yaxis_transform(), **marks)


def _without_place(norms: Array, label: str, line: Line2D) -> list[tuple[Array, dict[str, Any]]]:
    """Masks of the norms that a curve cannot show (zero, not finite), each with the style of its markers."""
    signs = ((norms == -np.inf, "x", "exactly zero"), (~(norms < np.inf), "+", "not finite"))
    look: dict[str, Any] = {"linestyle": "none", "color": line.get_color()}
    return [
        (which, {"marker": sign, "label": f"{label}: {what}", **look}) for which, sign, what in signs if which.any()
    ]


def label_depth(axes: Axes) -> None:
    """Label the axes of norms against the boundaries between layers."""
    axes.set_xlabel("norm over all timesteps (log scale)")
    axes.grid(alpha=0.3)
    label_powers(axes.xaxis)
    axes.tick_params(axis="x", labelrotation=45)


def _layer_figure(flow: Flow, label: str | None) -> Figure:
    shown = [] if flow._log10_unit is None else spread(len(flow.names), _HEAT_MAPS)
    figure = ShownFigure(figsize=(13 if shown else 9, max(5.5, 0.9 + 1.2 * len(shown))), layout="constrained")
    _set_title(figure, flow, label)
    grid = figure.add_gridspec(max(1, len(shown)), 2 if shown else 1)
    curves = figure.add_subplot(grid[:, 0])
    _legend_beside(curves, draw_curves(curves, _curves_of(flow, label)))
    alone = flow.log10_norm_per_sequence.size == flow.log10_norm.size
    curves.set_title("Over batch and units" if alone else "Of each sequence, over units")
    if shown:
        panels = [figure.add_subplot(grid[place, 1]) for place in range(len(shown))]
        _draw_units(figure, panels, flow, shown)
    return figure


def literal(text: str) -> str:
    """Escape text for a title that wraps: matplotlib ignores `parse_math=False` when it measures the title."""
    return text.replace("$", r"\$")


def _set_title(figure: Figure, flow: Flow, label: str | None) -> None:
    title = flow.title if label is None else f"{label}: {flow.title}"
    fault = "" if flow.fault is None else f"\nforward not finite: {flow.fault}"
    figure.suptitle(literal(title + fault), wrap=True)


def _draw_units(figure: Figure, panels: list[Axes], flow: Flow, shown: list[int]) -> None:
    """Draw heat maps, time x unit, of these rows with a common colour scale."""
    maps = [flow.log10_unit[row, : _steps(flow)].T for row in shown]
    colours = colour_scale(*maps)
    for axes, row, values in zip(panels, shown, maps, strict=True):
        image = heat_map(axes, values, colours)
        axes.set_title(f"{flow.names[row]}, each unit over the batch", loc="left", fontsize="medium")
        axes.set_ylabel(binned_label("unit", len(values)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if axes is not panels[-1]:
            axes.tick_params(labelbottom=False)
    rows = len(flow.names)
    left_out = f"\n{len(shown)} of {rows} rows; all are in flow.log10_unit" if len(shown) < rows else ""
    panels[-1].set_xlabel(_time_label(flow) + left_out)
    figure.colorbar(image, ax=panels, label=f"log10 of norm of {_typeset(flow.quantity)} per unit")


def _stack_figure(flow: Stack, label: str | None) -> Figure:
    rows, norms = len(flow.names), flow.log10_norm[:, : _steps(flow)]
    named = spread(rows, _NAMES)
    below = 2 + 0.25 * len(named)  # inches
    figure = ShownFigure(figsize=(13, 4.5 + below), layout="constrained")
    _set_title(figure, flow, label)
    grid = figure.add_gridspec(2, 2, width_ratios=(2.2, 1), height_ratios=(4, below), wspace=0.08)
    curves = figure.add_subplot(grid[0, :])
    _legend_beside(curves, draw_curves(curves, _curves_of(flow, label)))
    curves.set_title("Gradient of what enters each layer")
    axes = figure.add_subplot(grid[1, 0])
    image = heat_map(axes, norms, colour_scale(norms))
    some = "" if len(named) == rows else f"\n{len(named)} of {rows} rows are named"
    axes.set_title("Depth and time", loc="left")
    axes.set_xlabel(_time_label(flow) + some)
    axes.set_yticks(named, [flow.names[row] for row in named])
    axes.set_ylim(rows - 0.5, -0.5)
    figure.colorbar(image, ax=axes, label=f"log10 of norm of {_typeset(flow.quantity)}")
    depth = figure.add_subplot(grid[1, 1], sharey=axes)
    draw_depth(depth, flow.depth_log10_norm, "norm", 0)
    depth.set_title("Depth, over all timesteps", loc="left")
    if len(depth.lines) > 1:
        legend_over(depth, depth.lines)
    depth.tick_params(labelleft=False)
    label_depth(depth)
    return figure


def draw_layers(axes: Axes, flows: Mapping[Any, Flow]) -> None:
    """Draw the norm at every boundary between layers, for named flows without time; the first layer is at the top."""
    first = len(axes.lines)
    for place, (name, flow) in enumerate(flows.items(), first):
        assert _is_stack(flow)
        draw_depth(axes, flow.depth_log10_norm, "norm" if name is None else name, place)
    label_depth(axes)
    axes.set_xlabel("norm of dL/dx over all rows (log scale)")
    longest = max(flows.values(), key=lambda flow: len(flow.names))
    rows, same = len(longest.names), len({flow.names for flow in flows.values()}) == 1
    named = spread(rows, _NAMES)
    axes.set_yticks(named, [longest.names[row] if same else f"into layers[{row}]" for row in named], parse_math=False)
    axes.set_ylim(rows - 0.5, -0.5)
    if len(named) < rows:
        axes.set_ylabel(f"{len(named)} of {rows} rows are named")
    if len(axes.lines) > 1:
        legend_over(axes, axes.lines)


def _layers_into_axes(axes: Axes, flows: Mapping[Any, Flow], title: str) -> Figure:
    draw_layers(axes, flows)
    axes.set_title(title, loc="left", parse_math=False)
    return figure_of(axes)


def _depth_figure(flows: Mapping[Any, Flow]) -> Figure:
    rows = max(len(flow.names) for flow in flows.values())
    figure = ShownFigure(figsize=(8, 2.5 + 0.2 * min(rows, _NAMES)), layout="constrained")
    axes = figure.add_subplot()
    draw_layers(axes, flows)
    return figure


def heat_map(axes: Axes, values: Array, colours: Normalize) -> AxesImage:
    """Draw values (rows, T) as colours; zeros are hatched, values that are not finite are cross-hatched."""
    drawn, (tall, wide) = values, (bin_size(size) for size in values.shape)
    for axis, size in enumerate((tall, wide)):
        drawn = largest(drawn, size, axis)
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
    axes.patch.set(**ZERO)
    legend: list[Artist] = [Patch(**ZERO, label="exactly zero")] if (drawn == -np.inf).any() else []
    broken = runs(~(np.max(drawn, axis=0) < np.inf))
    for first, last in broken:
        axes.axvspan(first * wide - 0.5, last * wide - 0.5, **BROKEN)
    if broken:
        legend.append(Patch(**BROKEN, label="not finite"))
    legend_over(axes, legend)
    return image


def runs(marked: Array) -> list[tuple[int, int]]:
    """Start and end of every run of true values."""
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def colour_scale(*maps: Array) -> Normalize:
    """A colour scale from the smallest to the largest finite value of all maps."""
    finite = np.concatenate([values[np.isfinite(values)] for values in maps])
    return Normalize(finite.min(), finite.max()) if finite.size else Normalize(-1, 0)


def marked(finite: Array, place: int) -> list[int]:
    """Indices of a curve's markers: ten, offset from those of other curves, and every isolated step."""
    apart = max(1, len(finite) // 10)
    beside = np.pad(finite, 1)
    alone = finite & ~beside[:-2] & ~beside[2:]
    return sorted({*range(place % 7 * apart // 7, len(finite), apart), *np.flatnonzero(alone).tolist()})


def _typeset(quantity: str) -> str:
    return quantity.replace("_t", "$_t$")
