"""`fixed_points`: states that a recurrent layer with a constant input maps to themselves, and their stability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._arguments import UNBOUNDED, Array, as_array, float_array, number, size
from .._memory import with_room
from .._text import counted
from .._torch_modules import from_torch
from ..backend.host import Host
from ..recurrent import Recurrent
from ..recurrent.arguments import Checks
from .joint_state import StepMap, as_state, check_layer

__all__ = ["FixedPoints", "fixed_points"]

_GROUP_BYTES = 1 << 26  # of the Jacobians of the points that move together
_SAME = 1e-6  # points nearer than this, relative to the larger of 1 and their norm, are one
_HALVINGS = 20  # of a Newton step before it is given up
_UNINTERRUPTED = 1 << 26  # multiplications of NumPy between two checks for Ctrl-C: some 10 ms
_DECREASE = 1e-4  # of the residual, relative to that of the linear model: Armijo's condition


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """The fixed points of a recurrent layer, as :func:`throughtime.fixed_points` returns them: m points from n starts.

    Attributes
    ----------
    points : (m, N) float64 array
        Joint states, h of all layers, then, for the LSTM, c of all layers; in the order of the first start that led to
        each.
    residuals : (m,) array
        Euclidean norm of ``F(point) - point``.
    jacobians : (m, N, N) array
        Derivative of F at each point.
    eigenvalues : (m, N) complex array
        Those of the Jacobians, the largest modulus first.
    stable : (m,) bool array
        Whether all eigenvalues are inside the unit circle, so that states near the point return to it.
    index : (n,) int array
        For each start, the point that it led to; -1 if it led to none.
    iterations : (n,) int array
        Newton steps from each start.
    state : array or tuple of arrays
        The points as ``layer.forward`` takes them, in the layer's type: (L, m, H), a pair for the LSTM.
    """

    points: Array
    residuals: Array
    jacobians: Array
    index: Array
    iterations: Array
    state: Any

    @cached_property
    def eigenvalues(self) -> Array:
        """Eigenvalues of the Jacobians, (m, N) complex, the largest modulus first."""
        parts = [np.linalg.eigvals(self.jacobians[rows]) for rows in _parts(self.jacobians, 25)]
        values = np.concatenate(parts).astype(np.complex128)
        order = np.argsort(-np.abs(values), axis=1, kind="stable")
        return np.take_along_axis(values, order, axis=1)

    @property
    def stable(self) -> Array:
        """Whether all eigenvalues are inside the unit circle, (m,) bool."""
        return np.asarray((np.abs(self.eigenvalues) < 1).all(axis=1))

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        reached = np.count_nonzero(self.index >= 0)
        return (
            f"FixedPoints({counted(len(self), 'point')}, {np.count_nonzero(self.stable)} stable, "
            f"from {reached} of {len(self.index)} starts)"
        )


@with_room
def fixed_points(
    layer: Recurrent, x: Any, starts: Any, *, tolerance: float = 1e-10, max_iterations: int = 100
) -> FixedPoints:
    """Find fixed points of a recurrent layer with a constant input: states h with ``F(h, x) = h``.

    Trained networks compute with them: stable points hold memories, and unstable ones decide between these (Sussillo
    and Barak 2013). The state is the joint state of all layers, so a fixed point is one of the whole stack. F is one
    step in inference mode (no dropout, zoneout's expectation), in float64 even if the layer is float32.

    From each start, Newton's method solves ``F(h) - h = 0`` with the Jacobians of :func:`jacobians`. A step that does
    not reduce the norm of ``F(h) - h`` enough is halved until it does (damped Newton; Armijo 1966). It finds stable and
    unstable points alike, and which one depends on the start: use states that the layer visits, with noise. Starts from
    which the norm ends above `tolerance`, in a local minimum or after `max_iterations` steps, are left out (Sussillo
    and Barak's slow points are such minima).

    A Newton step costs as much as ``n N`` sequences of length 1, and a linear system of size N for each start.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        One direction, forward in time; modules of ``torch.nn`` and ``throughtime.torch`` are accepted too.
    x : (I,) array
        The input, the same at every step.
    starts : (n, N) array, or as the state of ``layer.forward``
        Joint states to start from, h of all layers, then, for the LSTM, c of all layers. Or (L, n, H), and a pair of
        them for the LSTM.
    tolerance : float
        Largest norm of ``F(h) - h`` at a fixed point, relative to the larger of 1 and the norm of h.
    max_iterations : int
        Most Newton steps from a start.

    Returns
    -------
    FixedPoints
        Each point once: points nearer to each other than 1e-6, relative to the larger of 1 and their norm, are one.

    Raises
    ------
    TypeError
        If `layer` is not recurrent, or the dtype of an array differs from the layer's.
    ValueError
        If the layer is bidirectional or reversed, a size does not fit, or x or a start is not finite.

    Examples
    --------
    A tanh unit with a recurrent weight of 2 stores a bit, in two stable states on either side of an unstable one:

    >>> import numpy as np
    >>> import throughtime as tt
    >>> rnn = tt.RNN(1, 1, bias=False, dtype="float64")
    >>> rnn.parameters["weight_hh_l0"][:] = 2
    >>> found = tt.fixed_points(rnn, np.zeros(1), np.linspace(-1, 1, 9)[:, None])
    >>> found
    FixedPoints(3 points, 2 stable, from 9 of 9 starts)
    >>> found.points[:, 0].round(4), found.stable
    (array([-0.9575,  0.    ,  0.9575]), array([ True, False,  True]))
    """
    layer, x, starts = from_torch(layer, x, starts)
    check_layer(layer)
    x = float_array("x", x, layer.dtype, (layer.input_size,))
    step = StepMap(layer)
    joint = _joint_starts(layer, step, starts)
    _check_finite("x", x[None])
    _check_finite("starts", joint)
    allowed = number("tolerance", tolerance, 0, 1, open_low=True, open_high=True)
    most = size("max_iterations", max_iterations, most=UNBOUNDED)
    search = _Search(step, x.astype(np.float64), allowed, most)
    ends, norms, iterations = search.run(joint)
    converged = np.isfinite(norms) & (norms <= allowed * _scale(ends))
    first, index = _distinct(ends, converged)
    points = ends[first]
    return FixedPoints(
        points=points,
        residuals=norms[first],
        jacobians=search.jacobians(points),
        index=index,
        iterations=iterations,
        state=as_state([array.astype(layer.dtype) for array in step.states(points)]),
    )


def _joint_starts(layer: Recurrent, step: StepMap, starts: Any) -> Array:
    """`starts` as joint states (n, N) in float64."""
    if not isinstance(starts, tuple | list):
        array = as_array("starts", starts)
        if array.ndim == 2:
            return float_array("starts", array, layer.dtype, ("n", step.width)).astype(np.float64)
        pair = len(layer.architecture.states) > 1
        if pair or array.ndim != 3:
            other = "a pair of (L, n, H)" if pair else "(L, n, H)"
            raise ValueError(f"starts has shape {array.shape}, expected (n, {step.width}), or {other}")
    first = as_array("starts", starts[0] if isinstance(starts, tuple | list) and starts else starts)
    count = first.shape[1] if first.ndim == 3 else 0
    given = Checks(layer.architecture, Host, layer.dtype).state("starts", starts, count, batched=True)
    return step.joint([array.astype(np.float64) for array in given if array is not None])


def _check_finite(name: str, rows: Array) -> None:
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        where = name if len(rows) == 1 and name == "x" else f"the joint state {name}[{int(bad.argmax())}]"
        raise ValueError(f"{where} is not finite")


def _parts(matrices: Array, operations: int) -> Iterator[slice]:
    """Slices of a few matrices (n, N, N) each; the work on one matrix takes `operations` N^3 multiplications."""
    rows = max(1, _UNINTERRUPTED // (operations * matrices.shape[-1] ** 3))
    return (slice(start, start + rows) for start in range(0, max(len(matrices), 1), rows))


def _scale(points: Array) -> Array:
    """The larger of 1 and the norm of each point."""
    largest = np.maximum(1, np.abs(points).max(axis=1, initial=0))  # squares of the points may overflow
    with np.errstate(over="ignore"):
        scale: Array = largest * np.maximum(1 / largest, np.linalg.norm(points / largest[:, None], axis=1))
    return scale


class _Search:
    """Damped Newton iterations on ``F(h) - h`` for a constant input."""

    def __init__(self, step: StepMap, x: Array, tolerance: float, most: int) -> None:
        self._step, self._x, self._tolerance, self._most = step, x, tolerance, most

    def run(self, starts: Array) -> tuple[Array, Array, Array]:
        """From each start (n, N): the last state, the norm of its residual, and the number of steps."""
        ends, norms, iterations = starts.copy(), np.empty(len(starts)), np.zeros(len(starts), np.int64)
        for rows in self._groups(len(starts)):
            norms[rows], iterations[rows] = self._run_group(ends[rows])
        return ends, norms, iterations

    def jacobians(self, points: Array) -> Array:
        """Derivatives of F, (m, N, N)."""
        found = np.empty((*points.shape, points.shape[1]))
        self._step.fill_jacobians(self._inputs(len(points)), points, found)
        return found

    def _groups(self, count: int) -> Iterator[slice]:
        group = max(1, _GROUP_BYTES // (8 * self._step.width**2))
        return (slice(begin, begin + group) for begin in range(0, count, group))

    def _inputs(self, count: int) -> Array:
        return np.tile(self._x, (count, 1))

    def _residuals(self, points: Array) -> tuple[Array, Array]:
        """``F(h) - h`` and its norms."""
        with np.errstate(over="ignore", invalid="ignore"):  # a step may lead out of the range of floats
            residuals = self._step.after(self._inputs(len(points)), points) - points
            return residuals, np.linalg.norm(residuals, axis=1)

    def _run_group(self, points: Array) -> tuple[Array, Array]:
        """Move `points` in place. Returns the norms of their residuals, and the number of steps of each."""
        residuals, norms = self._residuals(points)
        iterations, moving = np.zeros(len(points), np.int64), np.flatnonzero(norms > 0)
        for _ in range(self._most):
            if not moving.size:
                break
            before = norms[moving]
            steps = self._newton_steps(points[moving], residuals[moving])
            moved = self._search_line(points, residuals, norms, moving, steps)
            iterations[moving[moved]] += 1
            # Below the tolerance, steps go on while they halve the residual, which ends at rounding.
            met = norms[moving] <= self._tolerance * _scale(points[moving])
            moving = moving[moved & (norms[moving] > 0) & ~(met & (norms[moving] > before / 2))]
        return norms, iterations

    def _newton_steps(self, points: Array, residuals: Array) -> Array:
        """Solutions d of ``(J - 1) d = -residual``; NaN where J is not finite."""
        matrices = self.jacobians(points) - np.eye(self._step.width)
        broken = ~np.isfinite(matrices).all(axis=(1, 2))
        matrices[broken] = np.eye(self._step.width)
        try:
            parts = [np.linalg.solve(matrices[rows], residuals[rows, :, None]) for rows in _parts(matrices, 1)]
            steps = -np.concatenate(parts)[..., 0]
        except np.linalg.LinAlgError:  # singular, as on a line of fixed points: the shortest step
            pairs = zip(matrices, residuals, strict=True)
            steps = np.stack([-np.linalg.lstsq(matrix, residual, rcond=None)[0] for matrix, residual in pairs])
        steps[broken] = np.nan
        return steps

    def _search_line(self, points: Array, residuals: Array, norms: Array, moving: Array, steps: Array) -> Array:
        """Move the points `moving` along their steps, halved until the residual falls. Returns which ones moved."""
        moved, share = np.zeros(len(moving), bool), 1.0
        for _ in range(_HALVINGS):
            left = np.flatnonzero(~moved)
            if not left.size:
                break
            rows = moving[left]
            tried = points[rows] + share * steps[left]
            new_residuals, new_norms = self._residuals(tried)
            better = new_norms < (1 - _DECREASE * share) * norms[rows]
            rows, moved[left] = rows[better], better
            points[rows], residuals[rows], norms[rows] = tried[better], new_residuals[better], new_norms[better]
            share /= 2
        return moved


def _distinct(points: Array, converged: Array) -> tuple[Array, Array]:
    """The first start that led to each point, and for each start the number of its point, -1 if it did not converge."""
    first: list[int] = []
    index = np.full(len(points), -1)
    for row in np.flatnonzero(converged):
        scale = _scale(points[row : row + 1])[0]
        near = np.linalg.norm((points[first] - points[row]) / scale, axis=1) <= _SAME
        if near.any():
            index[row] = near.argmax()
        else:
            index[row] = len(first)
            first.append(int(row))
    return np.array(first, np.int64), index
