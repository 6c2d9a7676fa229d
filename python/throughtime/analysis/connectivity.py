"""`connectivity`: how strongly the output at chosen timesteps depends on the input at every timestep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arguments import Array, float_array, size
from .._memory import with_room
from .._plotting import needing_matplotlib
from .._scaled import ZERO, Scaled, log10_norm
from .._torch_modules import from_torch
from ..backend.host import Host
from ..recurrent import Recurrent
from ..recurrent.arguments import Checks, time_major
from ..recurrent.scaled_backward import ScaledPass
from .flow_result import combined_log10_norm
from .joint_state import as_state, check_recurrent, step_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["connectivity", "plot_connectivity"]

_BATCH_BYTES = 1 << 28  # of the arrays of one batched forward and backward


@with_room
def connectivity(layer: Recurrent, x: Any, at: Sequence[int], *, state: Any = None) -> Array:
    """log10 of how strongly the output at chosen timesteps depends on the input at every timestep.

    Entry [i, s] is log10 of the root mean square, over the sequences, of ``||dh_t / dx_s||`` for ``t = at[i]``. The
    norm is the Frobenius norm of the Jacobian (D*H, I) of the top layer's output at timestep t by the input at timestep
    s. For all t, it is the triangle of Madsen (2019, "Visualizing memorization in RNNs", Distill,
    doi:10.23915/distill.00016), who takes the gradient of a class's score instead of the Jacobian of h_t. A row that
    stays level towards s = 0 belongs to a network that remembers.

    The norms are logarithms because they vanish: they are exact far below and above the range of floats, like those of
    :func:`gradient_flow`. ``10.0 ** connectivity(...)`` are the plain norms if they are in range. The layer runs in its
    own type and in inference mode (no dropout, zoneout's expectation).

    Each row of each Jacobian is a sequence of its own in one batched forward and backward: ``len(at) D H B`` sequences,
    of T steps (of the largest `at` + 1 in a layer that runs forward in time). If they need more than some 256 MB, they
    run in several batches.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        Any number of layers and directions; modules of ``torch.nn`` and ``throughtime.torch`` are accepted too.
    x : (T, B, I) array
        Input, as for ``layer.forward``.
    at : sequence of int
        The timesteps t, from 0 to T - 1; ``range(T)`` for the whole triangle.
    state : optional
        Initial state, as for ``layer.forward``.

    Returns
    -------
    log10_norm : (len(at), T) float64 array
        ``-inf`` where h_t does not depend on x_s, for example for s > t if the layer has one direction; ``nan`` if the
        forward is not finite on the way.

    Raises
    ------
    TypeError
        If `layer` is not recurrent, `at` is not a sequence of int, or the dtype of an array differs from the layer's.
    ValueError
        If a timestep is not in x, x has no sequence, or a size does not fit.

    See Also
    --------
    plot_connectivity : draws the result.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((1000, 2, 3), dtype=np.float32)
    >>> found = tt.connectivity(tt.LSTM(3, 8, seed=0), x, at=(500, 999))
    >>> found.shape
    (2, 1000)
    >>> found[0, [500, 499, 400, 0, 501]].round(1)  # at t = 500, of the inputs at 500, 499, 400, 0 and 501
    array([ -0.6,  -1. , -19.2, -92.1,  -inf])
    """
    layer, x, state = from_torch(layer, x, state)
    check_recurrent("connectivity", layer)
    checks = Checks(layer.architecture, Host, layer.dtype)
    x, batched = checks.x(x)
    steps, batch, _ = x.shape
    initial = checks.state("state", state, batch, batched)
    times = _timesteps(at, steps)
    if not batch:
        raise ValueError("x must hold at least one sequence, got B = 0")
    norms = np.full((len(times), steps), -np.inf)
    order = np.argsort(times, kind="stable")  # batches of similar times: those of early ones are shorter
    features = layer.architecture.output_size
    total = len(times) * features * batch
    step_bytes = layer.dtype.itemsize * 2 * step_numbers(layer.architecture)
    rows_at_once = max(1, _BATCH_BYTES // (steps * step_bytes))
    for begin in range(0, total, rows_at_once):
        rows = np.arange(begin, min(begin + rows_at_once, total))
        sequences, (place, entries) = rows % batch, np.divmod(rows // batch, features)
        own = order[place]
        found = _row_norms(layer, x, initial, sequences, times[own], entries)  # (steps of the batch, rows)
        for i in np.unique(own):
            both = [norms[i, : len(found)], combined_log10_norm(found[:, own == i], axis=1)]
            norms[i, : len(found)] = combined_log10_norm(np.stack(both), axis=0)
    norms -= np.log10(batch) / 2
    return norms


def plot_connectivity(
    log10_norm: Array, at: Sequence[int], path_or_axes: str | os.PathLike[str] | Axes | None = None
) -> Figure:
    """Draw the result of :func:`connectivity` as a heat map of inputs by outputs, Madsen's triangle; needs matplotlib.

    Parameters
    ----------
    log10_norm : (len(at), T) array
        As `connectivity` returns it.
    at : sequence of int
        The timesteps of the rows.
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
    TypeError, ValueError
        If an argument has another type, or the sizes of `log10_norm` and `at` do not fit.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((50, 1, 3), dtype=np.float32)
    >>> figure = tt.plot_connectivity(tt.connectivity(tt.GRU(3, 8, seed=0), x, range(50)), range(50))
    """
    at = _listed(at)
    values = float_array("log10_norm", log10_norm, np.dtype(np.float64), (len(at), "T"))
    times = _timesteps(at, values.shape[1])
    if not values.size:
        raise ValueError(f"log10_norm is empty: shape {values.shape}, expected at least one row and one step")
    with needing_matplotlib():
        from . import connectivity_figure
    return connectivity_figure.plot(values, times, path_or_axes)


def _listed(at: Any) -> list[Any]:
    """`at` as a list, since it may be an iterator."""
    if isinstance(at, str) or not isinstance(at, Iterable) or (isinstance(at, np.ndarray) and not at.ndim):
        raise TypeError(f"at must be a sequence of timesteps, got {at!r}")
    return list(at)


def _timesteps(at: Any, steps: int) -> Array:
    """`at` as an array of timesteps from 0 to `steps` - 1."""
    return np.array([size(f"at[{i}]", t, least=0, most=steps - 1) for i, t in enumerate(_listed(at))], np.int64)


def _row_norms(
    layer: Recurrent, x: Array, initial: list[Array | None], sequences: Array, times: Array, entries: Array
) -> Array:
    """log10 of ||d output[t, entry] / dx_s|| for each row, a sequence of x (T, B, I) with its t and entry: (s, rows).

    In a layer that runs forward in time, s ends at the largest t.
    """
    described = layer.architecture
    reads_ahead = described.num_directions > 1 or described.reverse
    steps = len(x) if reads_ahead else int(times.max()) + 1
    lengths = None if reads_ahead else times + 1  # what comes after t does not matter, NaN included
    batch = time_major(x[:steps, sequences], True, described.batch_first)
    states = [np.ascontiguousarray(array[:, sequences]) for array in initial if array is not None]
    tape = layer.forward(batch, as_state(states) if states else None, lengths, training=False, output="last")
    parts = list(_unit_rows(described.num_directions, described.width, steps, times, entries, layer.dtype))
    if described.batch_first:
        parts = [Scaled(part.values.swapaxes(0, 1), part.exponent.swapaxes(0, 1)) for part in parts]
    found = log10_norm(ScaledPass(repr(layer), tape.record).run(parts, asks_input=True))
    return found.T if described.batch_first else found


def _unit_rows(
    directions: int, width: int, steps: int, times: Array, entries: Array, dtype: np.dtype[Any]
) -> Iterator[Scaled]:
    """For each direction its part of the loss: a one in entry `entries[r]` of the output of row r at `times[r]`."""
    for direction in range(directions):
        own = entries // width == direction
        exponent = np.full((steps, len(times)), ZERO, np.int32)
        exponent[times[own], np.flatnonzero(own)] = 0
        values = np.eye(width, dtype=dtype)[entries % width]
        yield Scaled(np.broadcast_to(values, (steps, *values.shape)), exponent)
