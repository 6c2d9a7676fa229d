"""The result of `throughtime.gradient_flow`: log10 of the gradient's norm at every timestep, its decay, and a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arguments import Array, check_shape, number
from .._plotting import needing_matplotlib
from .notebook import in_notebook, picture_and_text, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GradientFlow", "StackFlow", "plot_flows"]

COLUMNS = ("start", "middle", "end", "gamma", "horizon(1e-3)", "horizon(1e-6)")
_NOTE = (
    "start, middle, end: log10 of the norm of {} along the way back; gamma: its mean factor per step back; "
    "horizon(f): steps back until it is below f times that of the start."
)


class GradientFlow:
    """The gradient's norm at every timestep of a recurrent layer, as :func:`throughtime.gradient_flow` returns it.

    All norms are logarithms to base 10, which may lie far outside the range of floats: ``-1500`` is a norm of 1e-1500.
    ``-inf`` is a gradient of exactly zero, for example in padding or after the last loss; ``inf`` and ``nan`` come from
    weights or losses that are not finite. A row is one layer and direction, in the order of ``h_n``. Its backward runs
    from the last timestep to the first; in the reverse direction, from the first to the last.

    Parameters
    ----------
    log10_norm_per_sequence : (L*D, T, B) array, float64
        log10 of ||dL/dh_t|| over the units; (L*D, T) without a batch.
    log10_unit : (L*D, T, H) array, float64, optional
        log10 of the norm over the batch.
    reverse : (L*D,) sequence of bool
        Which rows belong to the reverse direction.
    names : (L*D,) sequence of str
        Names of the rows in the table and in plots.
    title : str
        Title of the table and of plots.
    lengths : (B,) integers, optional
        Length of each sequence; one integer without a batch. Steps beyond the longest are padding and are ignored.
    fault : str, optional
        Where the forward stopped being finite. Gradients that pass through that step are ``nan``.

    Attributes
    ----------
    log10_norm_per_sequence, reverse, names, title, lengths, fault
        As given.
    steps : int
        Timesteps of the longest sequence; T without lengths.
    log10_norm : (L*D, T) array
        log10 of ||dL/dh_t|| over batch and units.
    """

    quantity = "dL/dh_t"

    def __init__(
        self,
        log10_norm_per_sequence: Array,
        log10_unit: Array | None = None,
        *,
        reverse: Sequence[bool],
        names: Sequence[str],
        title: str,
        lengths: Array | None = None,
        fault: str | None = None,
    ) -> None:
        rows = len(names)
        axes = ("T", "B")[: log10_norm_per_sequence.ndim - 1]
        check_shape("log10_norm_per_sequence", log10_norm_per_sequence, (rows, *axes))
        self.log10_norm_per_sequence = log10_norm_per_sequence
        if log10_unit is not None:
            check_shape("log10_unit", log10_unit, (*log10_norm_per_sequence.shape[:2], "H"))
        self._log10_unit = log10_unit
        self.reverse: Array = np.array(reverse, np.bool_)
        check_shape("reverse", self.reverse, (rows,))
        self.names: tuple[str, ...] = tuple(names)
        self.title = title
        self.fault = fault
        self.lengths: Array | None = None if lengths is None else np.array(lengths, np.int64)
        steps, *batch = log10_norm_per_sequence.shape[1:]
        if self.lengths is not None:
            check_shape("lengths", self.lengths, tuple(batch))
        self.steps: int = steps if self.lengths is None else int(self.lengths.max(initial=0))

    def __repr__(self) -> str:
        rows, steps = self.log10_norm.shape
        fault = "" if self.fault is None else f", forward not finite: {self.fault}"
        return f"{type(self).__name__}({self.title!r}, {rows} rows, {steps} timesteps{fault})"

    @cached_property
    def log10_norm(self) -> Array:
        """log10 of the norm over batch and units, (L*D, T)."""
        each = self.log10_norm_per_sequence
        return each if each.ndim == 2 else combined_log10_norm(each, axis=2)

    @property
    def log10_unit(self) -> Array:
        """log10 of the norm of each unit's gradient over the batch, (L*D, T, H)."""
        if self._log10_unit is None:
            raise AttributeError("this flow has no log10_unit: none was given to the constructor")
        return self._log10_unit

    @property
    def gamma(self) -> Array:
        """Geometric mean of the factor by which the norm changes per step back, (L*D,).

        ``(norm at the last / norm at the first) ** (1 / n)``, n steps apart: the first and the last step, in backward
        order, that carry a gradient (a norm above zero). Steps count back from each sequence's own end. Norms between
        the two do not matter. NaN if fewer than two steps carry a gradient. Gamma describes a loss on one step; losses
        on later steps of the backward add to it.
        """
        with np.errstate(over="ignore", under="ignore"):
            gamma: Array = np.power(10.0, self._log10_gamma)
        return gamma

    def horizon(self, fraction: float) -> Array:
        """Steps back until the norm is below a fraction of its first value.

        Parameters
        ----------
        fraction : float
            Above 0 and below 1.

        Returns
        -------
        (L*D,) array
            Steps from the first one that carries a gradient, in backward order, to the first whose norm is below
            `fraction` times the norm there; a gradient of exactly zero is below. ``inf`` if no norm up to the last step
            of the longest sequence is; ``nan`` if no step carries a gradient, the first norm is infinite, or a NaN
            comes earlier.

        Raises
        ------
        TypeError, ValueError
            If `fraction` is not a number between 0 and 1.
        """
        fraction = number("fraction", fraction, 0, 1, open_low=True, open_high=True)
        return np.array([_horizon(self._way(row), np.log10(fraction)) for row in range(len(self.names))])

    def summary(self) -> str:
        """Return a table of every row: log10 of the norm at the start, middle and end of its backward, gamma, horizons.

        Returns
        -------
        str
            The start is the first step that carries a gradient, in backward order. The end is the last timestep in that
            order: the first of the sequence, or the last of the longest sequence in the reverse direction. If the
            forward was not finite, a line before the table says so.
        """
        return self._as_text(COLUMNS, [self.cells(row) for row in range(len(self.names))], _NOTE.format(self.quantity))

    def _as_text(self, columns: Sequence[str], cells: Sequence[Sequence[str]], note: str) -> str:
        """The title, a table with one line per row, and a note."""
        lines = [("", *columns), *((name, *own) for name, own in zip(self.names, cells, strict=True))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join([name.ljust(widths[0]), *map(str.rjust, own, widths[1:])]).rstrip() for name, *own in lines]
        fault = [] if self.fault is None else [fault_text(self.fault)]
        return "\n".join([self.title, *fault, *table, note])

    def cells(self, row: int) -> tuple[str, ...]:
        """The cells of a row of the table, in the order of ``COLUMNS``."""
        way = self._way(row)
        places = (way[0], way[len(way) // 2], way[-1]) if way.size else (-np.inf,) * 3
        horizons = (_horizon(way, exponent) for exponent in (-3.0, -6.0))
        return (*map(_log10_text, places), factor_text(self._log10_gamma[row]), *map(_steps_text, horizons))

    def plot(self, path_or_axes: str | os.PathLike[str] | Axes | None = None, label: str | None = None) -> Figure:
        """Draw the norms over time, and heat maps over the units; needs matplotlib.

        Parameters
        ----------
        path_or_axes : path or matplotlib Axes, optional
            File to save the figure to, in the format of its suffix; or axes to draw only the curves into, in addition
            to those of other flows that they already show.
        label : str, optional
            Name of this flow in the legend.

        Returns
        -------
        matplotlib.figure.Figure
            A new figure, or that of the axes. For several sequences, a curve is their median and a band their range.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If `path_or_axes` or `label` has another type.
        """
        if not isinstance(label, str | None):
            raise TypeError(f"label must be a str, got {type(label).__name__}")
        figure: Figure = _figures().plot(self, path_or_axes, label)
        return figure

    def _repr_png_(self) -> bytes | None:
        return in_notebook(lambda: png(self.plot()))

    def _repr_html_(self) -> str | None:
        return in_notebook(lambda: picture_and_text(self.plot(), self.summary()))

    @cached_property
    def _log10_gamma(self) -> Array:
        return np.array([_log10_gamma(self._way(row)) for row in range(len(self.names))])

    @cached_property
    def by_lag(self) -> Array:
        """log10 of the norm at each step back from every sequence's own last one, over batch and units, (L*D, steps).

        At the timesteps themselves, the loss of a short sequence, met late in the backward, would look like growth.
        """
        each, reverse = self.log10_norm_per_sequence[:, : self.steps], self.reverse
        if self.lengths is None or each.ndim == 2:
            norms = self.log10_norm[:, : self.steps]
            ways: Array = np.where(reverse[:, None], norms, norms[:, ::-1])
            return ways
        times = self.lengths - 1 - np.arange(self.steps)[:, None]
        moved = np.take_along_axis(each, np.broadcast_to(times.clip(0), each.shape), axis=1)
        ways = np.where(reverse[:, None, None], each, np.where(times < 0, -np.inf, moved))
        return combined_log10_norm(ways, axis=2)

    def _way(self, row: int) -> Array:
        """The row's norms in backward order, from the first lag that carries a gradient to the end."""
        norms: Array = self.by_lag[row]
        carrying = np.flatnonzero(norms != -np.inf)
        return norms[carrying[0] :] if carrying.size else norms[:0]


def plot_flows(flows: Mapping[str, GradientFlow], path_or_axes: str | os.PathLike[str] | Axes | None = None) -> Figure:
    """Draw the norms over time of several flows into one plot, with their names; needs matplotlib.

    Parameters
    ----------
    flows : mapping of str to GradientFlow
        Results of :func:`gradient_flow`, by their names in the legend.
    path_or_axes : path or matplotlib Axes, optional
        File to save the figure to, in the format of its suffix; or axes to draw into.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure, or that of the axes.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `flows` is not a mapping of names to flows, or `path_or_axes` has another type.
    ValueError
        If `flows` is empty.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((500, 4, 8), dtype=np.float32)
    >>> flows = {layer.__name__: tt.gradient_flow(layer(8, 16, seed=0), x) for layer in (tt.RNN, tt.LSTM)}
    >>> figure = tt.plot_flows(flows)
    """
    if not isinstance(flows, Mapping):
        raise TypeError(f"flows must be a dict of name to flow, got {type(flows).__name__}")
    if not flows:
        raise ValueError("flows is empty, expected at least one flow")
    for name, flow in flows.items():
        if not isinstance(name, str) or not isinstance(flow, GradientFlow):
            what = f"{name!r}: {type(flow).__name__}"
            raise TypeError(f"flows must be a dict of str to GradientFlow, got {what}")
    figure: Figure = _figures().plot_flows(flows, path_or_axes)
    return figure


def _figures() -> Any:
    """Import the module that draws; it needs matplotlib."""
    with needing_matplotlib():
        from . import flow_figures
    return flow_figures


class StackFlow(GradientFlow):
    """The gradient's norm at every timestep and layer of a `Sequential`.

    A row is the gradient of a layer's input, dL/dx_t; the last row is that of the output. ``layers`` has the flow
    inside each recurrent layer, from step to step.

    Parameters
    ----------
    log10_norm_per_sequence : (layers + 1, T, B) array, float64
        log10 of ||dL/dx_t|| over the features; (layers + 1, T) without a batch.
    names : (layers + 1,) sequence of str
        Names of the rows in the table and in plots.
    layers : (layers,) sequence of GradientFlow or None
        The flow inside each layer that is or contains a recurrent one; None for others.
    title, lengths, fault
        As for :class:`.GradientFlow`.

    Attributes
    ----------
    layers : tuple of GradientFlow or None
    depth_log10_norm : (layers + 1,) array
        log10 of the norm over all timesteps.
    log10_norm, log10_norm_per_sequence, reverse, names, title, lengths, steps, fault
        As for :class:`.GradientFlow`, with one row per boundary between layers; ``reverse`` is False in every row.
    """

    quantity = "dL/dx_t"

    def __init__(
        self,
        log10_norm_per_sequence: Array,
        *,
        names: Sequence[str],
        layers: Sequence[GradientFlow | None],
        title: str,
        lengths: Array | None = None,
        fault: str | None = None,
    ) -> None:
        reverse, norms = [False] * len(names), log10_norm_per_sequence
        super().__init__(norms, reverse=reverse, names=names, title=title, lengths=lengths, fault=fault)
        self.layers: tuple[GradientFlow | None, ...] = tuple(layers)
        if len(self.layers) != len(self.names) - 1:
            raise ValueError(f"layers has {len(self.layers)} entries, expected {len(self.names) - 1}: len(names) - 1")

    @property
    def log10_unit(self) -> Array:
        """Not available: the layers of a stack differ in width."""
        inside = [i for i, layer in enumerate(self.layers) if layer is not None]
        where = f"flow.layers[i].log10_unit, i among {inside}" if inside else "no layer here is recurrent"
        raise AttributeError(f"a stack has no log10_unit: {where}")

    @property
    def _is_of_depth_alone(self) -> bool:
        """Whether there is only one timestep, as for rows (N, F)."""
        return len(self.log10_norm[0]) == 1

    def summary(self) -> str:
        """Return a table of every boundary between layers: `depth_log10_norm`, and the norm's course over time.

        Returns
        -------
        str
            "all steps" is `depth_log10_norm`; the other columns are those of :meth:`GradientFlow.summary`. If there is
            only one timestep, the columns are `depth_log10_norm` and the factor by which each layer changes it.
        """
        depth = [_log10_text(norm) for norm in self.depth_log10_norm]
        if self._is_of_depth_alone:
            with np.errstate(invalid="ignore"):  # inf - inf
                factors = [*map(factor_text, self.depth_log10_norm[:-1] - self.depth_log10_norm[1:]), ""]
                mean = (self.depth_log10_norm[0] - self.depth_log10_norm[-1]) / len(self.layers)
            note = (
                "norm: log10 of the norm of dL/dx over all rows; factor: from what leaves the layer to what enters it; "
                f"their geometric mean is {factor_text(mean)}."
            )
            return self._as_text(("norm", "factor"), list(zip(depth, factors, strict=True)), note)
        cells = [(text, *self.cells(row)) for row, text in enumerate(depth)]
        note = f"all steps: log10 of the norm of {self.quantity} over all timesteps; {_NOTE.format(self.quantity)}"
        return self._as_text(("all steps", *COLUMNS), cells, note)

    @cached_property
    def depth_log10_norm(self) -> Array:
        """log10 of the norm over timesteps, batch and features, (layers + 1,)."""
        return combined_log10_norm(self.log10_norm, axis=1)


def combined_log10_norm(logarithms: Array, axis: int) -> Array:
    """log10 of the root of the sum of squares of 10**logarithms; the largest is factored out first."""
    largest = np.max(logarithms, axis=axis, keepdims=True, initial=-np.inf)
    unit = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(all="ignore"):  # log10(0) is -inf, and 10^inf is inf, as they should be
        squares = np.power(10.0, 2 * (logarithms - unit))
        norm: Array = unit.squeeze(axis) + np.log10(squares.sum(axis=axis)) / 2
    return norm


def _log10_gamma(way: Array) -> float:
    carrying = np.flatnonzero(way != -np.inf)
    if len(carrying) < 2:
        return np.nan
    with np.errstate(invalid="ignore"):  # inf - inf
        return float((way[carrying[-1]] - way[0]) / carrying[-1])


def _horizon(way: Array, log10_fraction: float) -> float:
    if not way.size:
        return np.nan
    with np.errstate(invalid="ignore"):  # inf - inf
        change = way - way[0]
    ends = np.flatnonzero((change < log10_fraction) | np.isnan(change))
    if not ends.size:
        return np.inf
    return np.nan if np.isnan(change[ends[0]]) else float(ends[0])


def _log10_text(value: float) -> str:
    return "zero" if value == -np.inf else f"{value:z.2f}"


def fault_text(fault: str) -> str:
    """The line that reports a forward that was not finite."""
    return f"The forward is not finite: {fault}. Gradients that come back through that are nan."


def factor_text(log10_factor: float) -> str:
    near = not abs(log10_factor) > 3
    return f"{10**log10_factor:.4f}" if near else f"10^{log10_factor:.1f}"


def _steps_text(steps: float) -> str:
    return "never" if steps == np.inf else f"{steps:.0f}"
