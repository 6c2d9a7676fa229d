"""The figure of `plot_connectivity`: norms of dh_t/dx_s as a heat map, input timestep by output timestep."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .._arguments import Array
from .flow_figures import check_path, colour_scale, figure_of, heat_map, saved
from .power_axis import label_powers
from .shown_figure import ShownFigure
from .thinning import binned_label, spread

_NAMED = 16  # rows whose timestep is written beside them


def plot(log10_norm: Array, times: Array, path_or_axes: str | os.PathLike[str] | Axes | None) -> Figure:
    """Draw into the given axes, or into a new figure, which is saved if a path is given."""
    if isinstance(path_or_axes, Axes):
        _draw(path_or_axes, log10_norm, times)
        return figure_of(path_or_axes)
    check_path(path_or_axes)
    figure = ShownFigure(figsize=(9, 2.5 + 0.25 * min(len(times), _NAMED)), layout="constrained")
    _draw(figure.add_subplot(), log10_norm, times)
    return saved(figure, path_or_axes)


def _draw(axes: Axes, log10_norm: Array, times: Array) -> None:
    image = heat_map(axes, log10_norm, colour_scale(log10_norm))
    named = _named_rows(times)
    axes.set_yticks(named, [str(times[row]) for row in named])
    axes.set_xlabel(binned_label("timestep s of the input", log10_norm.shape[1]))
    axes.set_ylabel(binned_label("timestep t of the output", len(times)))
    axes.set_title("Connectivity", loc="left")
    bar = figure_of(axes).colorbar(image, ax=axes, label="norm of dh$_t$/dx$_s$ (log scale)")
    label_powers(bar.ax.yaxis)


def _named_rows(times: Array) -> Sequence[int]:
    """The rows whose timestep is written beside them: round timesteps if the rows are consecutive ones."""
    if len(times) <= _NAMED or np.any(np.diff(times) != 1):
        return spread(len(times), _NAMED)
    round_times = MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True).tick_values(times[0], times[-1])
    return [int(t - times[0]) for t in round_times if times[0] <= t <= times[-1]]
