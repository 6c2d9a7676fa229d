"""How differences of a recurrent layer's state grow or decay: Lyapunov exponents, singular values of its Jacobians."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import numpy as np

from .._arguments import UNBOUNDED, Array, flag, size
from .._memory import with_room
from .._torch_modules import from_torch
from ..recurrent import Recurrent
from .joint_state import Trajectory
from .products import GrowthRates, log_singular_values

__all__ = ["LyapunovSpread", "jacobian_singular_values", "lyapunov_spectrum"]


class LyapunovSpread(NamedTuple):
    """Lyapunov exponents with their error bars, as ``lyapunov_spectrum(..., return_spread=True)`` returns them.

    Attributes
    ----------
    exponents : (k,) array
        Mean over sequences and windows, nats per step, largest first.
    standard_error : (k,) array
        Standard deviation of the samples over the square root of their number, B times the number of windows; NaN for
        a single sample and for exponents of minus infinity. It assumes that samples are independent: windows should be
        longer than the memory of the state.
    samples : (B, windows, k) array
        The exponents of each sequence and window, in the order of `exponents`.
    """

    exponents: Array
    standard_error: Array
    samples: Array


@overload
def lyapunov_spectrum(
    layer: Recurrent,
    x: Any,
    k: int | None = ...,
    *,
    state: Any = ...,
    warmup: int = ...,
    windows: int = ...,
    every: int = ...,
    return_spread: Literal[False] = ...,
) -> Array: ...
@overload
def lyapunov_spectrum(
    layer: Recurrent,
    x: Any,
    k: int | None = ...,
    *,
    state: Any = ...,
    warmup: int = ...,
    windows: int = ...,
    every: int = ...,
    return_spread: Literal[True],
) -> LyapunovSpread: ...
@with_room
def lyapunov_spectrum(
    layer: Recurrent,
    x: Any,
    k: int | None = None,
    *,
    state: Any = None,
    warmup: int = 0,
    windows: int = 1,
    every: int = 1,
    return_spread: bool = False,
) -> Array | LyapunovSpread:
    """Lyapunov exponents of a recurrent layer driven by x: the rates at which small differences of its state grow.

    The sign of the largest exponent separates stable (negative) from chaotic (positive) dynamics. The spectrum shows
    the timescales of the layer's memory: a difference along direction i changes by a factor ``exp(exponent_i)`` per
    step, and so does a gradient on its way back. The state is the joint state of all layers, h and for the LSTM c, so
    there are N exponents, where N is the sum of their widths.

    The Jacobians are taken along the layer's own trajectory in inference mode (no dropout, zoneout's expectation), in
    float64 even if the layer is float32. Their product is computed by the QR method (Benettin et al. 1980; Shimada and
    Nagashima 1979; for recurrent networks Vogt et al. 2022, Engelken, Wolf and Abbott 2023).

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        One direction, forward in time; modules of ``torch.nn`` and ``throughtime.torch`` are accepted too.
    x : (T, B, I) array
        Input, as for ``layer.forward``. The exponents are the mean over the sequences.
    k : int, optional
        Number of exponents, the largest first; all N when None. A smaller k costs less, but the full Jacobians are
        still computed.
    state : (L, B, H) array, or a pair of them for the LSTM, optional
        Initial state; zeros when None.
    warmup : int
        Number of first steps of x that are not averaged. In these, the state settles on its attractor and the
        directions align with those that grow fastest.
    windows : int
        Number of parts of equal length, to within a step, into which the steps after the first `warmup` are divided.
        Each has its own directions, which align during the `warmup` steps before it, and its own exponents. The parts
        may overlap with the warm-up of later ones, so the call multiplies ``(windows - 1) * warmup`` more Jacobians,
        but computes none twice.
    every : int
        Most Jacobians that are multiplied from one QR decomposition to the next. The exponents are the same up to
        rounding, with errors up to 1e3 times as large. If columns become nearly dependent within so many steps, or
        leave the range of floats, the decompositions come more often from there on. More than 1 saves time if the
        exponents asked for differ by less than about ``7 / every``. A group of `every` Jacobians is kept in memory.
    return_spread : bool
        Return error bars and the exponents of each sequence and window too.

    Returns
    -------
    exponents : (k,) float64 array
        Nats per step, largest first. Minus infinity for directions that a step wiped out, which happens if units are
        off or saturated, or weights are zero. A direction counts as wiped out if rounding makes the Jacobian, with rows
        scaled to equal size, indistinguishable from a singular matrix: for N = 100, if a step shrinks the direction
        about 1e12 times more than others and the cause is not a single unit's small slope.
    spread : LyapunovSpread
        With `return_spread`, a named tuple ``(exponents, standard_error, samples)`` instead.

    Raises
    ------
    TypeError
        If `layer` is not recurrent, or an argument has another type.
    ValueError
        If x has no sequence, the layer is bidirectional or reversed, or a size does not fit.
    FloatingPointError
        If the state or a Jacobian is not finite; the message names the step and the sequence.

    See Also
    --------
    jacobian_singular_values : the same for a finite stretch of time, without the limit.
    jacobians : the Jacobians themselves.

    Examples
    --------
    An orthogonal recurrent matrix times 0.9, with units that stay in the linear range:

    >>> import numpy as np
    >>> import throughtime as tt
    >>> rnn = tt.RNN(1, 3, nonlinearity="relu", dtype="float64", seed=0)
    >>> rnn.parameters["weight_hh_l0"][:] = 0.9 * np.roll(np.eye(3), 1, axis=0)
    >>> rnn.parameters["bias_ih_l0"][:] = 1
    >>> tt.lyapunov_spectrum(rnn, np.zeros((50, 1, 1)), warmup=10).round(6)
    array([-0.105361, -0.105361, -0.105361])

    Error bars from 4 sequences and 5 windows:

    >>> x = np.random.default_rng(0).standard_normal((550, 4, 2), dtype=np.float32)
    >>> found = tt.lyapunov_spectrum(tt.GRU(2, 3, seed=0), x, warmup=50, windows=5, return_spread=True)
    >>> found.samples.shape
    (4, 5, 3)
    >>> found.exponents.round(2), found.standard_error.round(3)
    (array([-0.62, -0.78, -0.99]), array([0.004, 0.006, 0.009]))
    """
    layer, x, state = from_torch(layer, x, state)
    trajectory = Trajectory(layer, x, state)
    width = trajectory.step.width
    if not trajectory.batch:
        raise ValueError("x must hold at least one sequence, got B = 0")
    count = width if k is None else size("k", k, most=width)
    skipped = size("warmup", warmup, least=0, most=trajectory.steps - 1)
    parts = size("windows", windows, most=trajectory.steps - skipped)
    stride = size("every", every, most=UNBOUNDED)
    asks_spread = flag("return_spread", return_spread)
    samples = _samples(trajectory, count, skipped, parts, stride)
    if count < width and np.any(samples == -np.inf):  # an untracked direction may grow faster than one that died
        samples = _samples(trajectory, width, skipped, parts, stride)
    found = _spread(samples, count)
    return found if asks_spread else found.exponents


def _samples(trajectory: Trajectory, k: int, warmup: int, windows: int, every: int) -> Array:
    """The exponents of each sequence and window, (B, windows, k), in the order of the columns."""
    edges = [warmup + i * (trajectory.steps - warmup) // windows for i in range(windows + 1)]
    samples = np.empty((trajectory.batch, windows, k))
    started: list[list[GrowthRates]] = []
    ended = 0
    for t, jacobians in enumerate(trajectory.jacobians()):
        while len(started) < windows and edges[len(started)] - warmup == t:
            started.append([GrowthRates(k, warmup, every) for _ in range(trajectory.batch)])
        for window in range(ended, len(started)):
            for rates, jacobian in zip(started[window], jacobians, strict=True):
                rates.add(jacobian)
        if t + 1 == edges[ended + 1]:
            samples[:, ended] = [rates.exponents() for rates in started[ended]]
            started[ended] = []
            ended += 1
    return samples


def _spread(samples: Array, k: int) -> LyapunovSpread:
    """The k largest mean exponents and their errors."""
    count = samples.shape[0] * samples.shape[1]
    mean = samples.mean(axis=(0, 1))
    order = np.argsort(-mean, kind="stable")[:k]
    error = np.full(k, np.nan)
    if count > 1:
        with np.errstate(invalid="ignore"):  # inf - inf
            error = samples[..., order].std(axis=(0, 1), ddof=1) / np.sqrt(count)
    return LyapunovSpread(mean[order], error, samples[..., order])


@with_room
def jacobian_singular_values(layer: Recurrent, x: Any, start: int, stop: int, *, state: Any = None) -> Array:
    """Singular values of the Jacobian of a recurrent layer's state after `stop` steps by that after `start` steps.

    The largest is the largest factor by which a small difference of the state, or a gradient on its way back, can grow
    over these steps; the smallest is the smallest such factor. State and Jacobians: see :func:`lyapunov_spectrum`.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        One direction, forward in time; modules of ``torch.nn`` and ``throughtime.torch`` are accepted too.
    x : (T, 1, I) array
        Input, as for ``layer.forward``: one sequence.
    start, stop : int
        Number of steps after which the state is taken, ``0 <= start <= stop <= T``; 0 is the initial state.
    state : (L, 1, H) array, or a pair of them for the LSTM, optional
        Initial state; zeros when None.

    Returns
    -------
    logarithms : (N,) float64 array
        Natural logarithms, largest first. The singular values may lie outside the range of floats: the product is never
        formed. Minus infinity for directions that a step wipes out, as in :func:`lyapunov_spectrum`. The absolute error
        of each is about eps times the largest factor by which a single step shrinks one direction more than others; the
        relative error is about eps.

    Raises
    ------
    ValueError
        If x has more than one sequence, the layer is bidirectional or reversed, or a size does not fit.
    FloatingPointError
        If the state or a Jacobian is not finite; the message names the step.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((2000, 1, 2), dtype=np.float32)
    >>> logarithms = tt.jacobian_singular_values(tt.RNN(2, 4, seed=0), x, 0, 2000)
    >>> logarithms.shape, bool(np.exp(logarithms[0]) > 0)
    ((4,), False)
    >>> (logarithms / 2000).round(2)
    array([-0.43, -0.82, -0.95, -3.36])
    """
    layer, x, state = from_torch(layer, x, state)
    trajectory = Trajectory(layer, x, state)
    width = trajectory.step.width
    if trajectory.batch != 1:
        raise ValueError(f"x must hold one sequence, expected B = 1, got B = {trajectory.batch}")
    end = size("stop", stop, least=0, most=trajectory.steps)
    begin = size("start", start, least=0, most=end)
    if begin == end:
        return np.zeros(width)
    return log_singular_values((each[0] for each in trajectory.jacobians(begin, end)), width)
