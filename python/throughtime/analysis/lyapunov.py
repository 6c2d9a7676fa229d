"""How differences of a recurrent layer's state grow or decay: Lyapunov exponents, singular values of its Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._arguments import Array, contiguous, size
from .._memory import with_room
from .._torch_modules import from_torch
from ..backend.choose import require_host
from ..backend.host import Host
from ..recurrent import Recurrent
from ..recurrent.arguments import Checks, time_major
from ..recurrent.backward import Asked, Loss, run_backward
from .products import log_singular_values, lyapunov_exponents

__all__ = ["jacobian_singular_values", "lyapunov_spectrum"]

_BLOCK_BYTES = 1 << 25  # memory of the kernels' arrays for one block of steps


@with_room
def lyapunov_spectrum(layer: Recurrent, x: Any, k: int | None = None, *, state: Any = None, warmup: int = 0) -> Array:
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
    x : (T, 1, I) array
        Input, as for ``layer.forward``: one sequence.
    k : int, optional
        Number of exponents, the largest first; all N when None. A smaller k costs less, but the full Jacobians are
        still computed.
    state : (L, 1, H) array, or a pair of them for the LSTM, optional
        Initial state; zeros when None.
    warmup : int
        Number of first steps of x that are not averaged. In these, the state settles on its attractor and the
        directions align with those that grow fastest.

    Returns
    -------
    exponents : (k,) float64 array
        Nats per step, largest first. Minus infinity for directions that a step wiped out, which happens if units are
        off or saturated, or weights are zero. A direction counts as wiped out if rounding makes the Jacobian, with rows
        scaled to equal size, indistinguishable from a singular matrix: for N = 100, if a step shrinks the direction
        about 1e12 times more than others and the cause is not a single unit's small slope.

    Raises
    ------
    ValueError
        If x has more than one sequence, the layer is bidirectional or reversed, or a size does not fit.
    FloatingPointError
        If the state or a Jacobian is not finite; the message names the step.

    See Also
    --------
    jacobian_singular_values : the same for a finite stretch of time, without the limit.

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
    """
    layer, x, state = from_torch(layer, x, state)
    x, initial, width = _check(layer, x, state)
    count = width if k is None else size("k", k, most=width)
    skipped = size("warmup", warmup, least=0, most=len(x) - 1)
    states = _trajectory(layer, x, initial)
    exponents = lyapunov_exponents(_jacobians(layer, x, states), count, skipped)
    if count < width and exponents[-1] == -np.inf:  # an untracked direction may grow faster than one that died
        exponents = lyapunov_exponents(_jacobians(layer, x, states), width, skipped)[:count]
    return exponents


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
    x, initial, width = _check(layer, x, state)
    end = size("stop", stop, least=0, most=len(x))
    begin = size("start", start, least=0, most=end)
    if begin == end:
        return np.zeros(width)
    states = _trajectory(layer, x[:end], initial)
    return log_singular_values(_jacobians(layer, x[:end], states, begin), width)


def _check(layer: Recurrent, x: Any, state: Any) -> tuple[Array, list[Array], int]:
    """x as (T, 1, I), the initial states (L, 1, H), and the width of the joint state."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be an RNN, GRU or LSTM, got {type(layer).__name__}")
    require_host("the state's Jacobian", layer.device)
    if layer.bidirectional or layer.reverse:
        raise ValueError(f"layer must have one direction, forward in time, got {layer!r}")
    checks = Checks(layer.architecture, Host, layer.dtype)
    x, batched = checks.x(x)
    if x.shape[1] != 1:
        raise ValueError(f"x must hold one sequence, expected B = 1, got B = {x.shape[1]}")
    shapes = [(layer.num_layers, 1, width) for width in layer.architecture.widths]
    initial = [
        np.zeros(shape, layer.dtype) if array is None else array
        for shape, array in zip(shapes, checks.state("state", state, 1, batched), strict=True)
    ]
    return x, initial, sum(array.size for array in initial)


def _trajectory(layer: Recurrent, x: Array, initial: list[Array]) -> list[Array]:
    """All states of all layers, the initial one first: (L, T + 1, H) float64 arrays."""
    x = time_major(x, True, layer.batch_first)
    tape = layer.forward(x, _as_state(initial), training=False, memory="states")
    states = [
        np.concatenate([start, array[:, 1:-1, 0]], axis=1).astype(np.float64)
        for start, array in zip(initial, tape.record.states, strict=True)
    ]
    bad = np.any([~np.isfinite(array).all(axis=(0, 2)) for array in states], axis=0)
    if bad.any():
        raise FloatingPointError(f"the state is not finite after {bad.argmax()} steps")
    return states


def _jacobians(layer: Recurrent, x: Array, states: list[Array], start: int = 0) -> Iterator[Array]:
    """Yield d state_t / d state_{t-1}, (N, N), for all steps from `start` on."""
    wide = layer.astype("float64")
    wide_x = x[:, 0].astype(np.float64)
    rows = sum(array.shape[0] * array.shape[2] for array in states)
    saved = 2 * (layer.input_size + layer.num_layers * (layer.architecture.gates + 4) * layer.hidden_size) + 2 * rows
    block = max(1, _BLOCK_BYTES // (8 * rows * saved))
    for begin in range(start, len(x), block):
        steps = slice(begin, begin + block)
        for t, jacobian in enumerate(_block(wide, wide_x[steps], [array[:, :-1][:, steps] for array in states]), begin):
            with np.errstate(over="ignore"):
                if not np.isfinite(np.abs(jacobian).sum()):
                    raise FloatingPointError(
                        f"the Jacobian of the state after {t + 1} steps by the one before is not finite"
                    )
            yield jacobian


def _block(layer: Recurrent, x: Array, states: list[Array]) -> Array:
    """The Jacobians (m, N, N) of m single steps with inputs x (m, I), from the states before them (L, m, H).

    The batch holds each step N times, as sequences of length 1. Row n of a Jacobian is the gradient of entry n of the
    state after the step, so `d_final_state` is the n-th unit vector.
    """
    sizes = [len(array) * array.shape[2] for array in states]
    rows = sum(sizes)
    unit = np.split(np.eye(rows), np.cumsum(sizes)[:-1], axis=1)
    seeds = [
        contiguous(np.tile(part.reshape(rows, len(array), -1).swapaxes(0, 1), (1, len(x), 1)))
        for part, array in zip(unit, states, strict=True)
    ]
    repeated = [np.repeat(array, rows, axis=1) for array in states]
    x = time_major(np.repeat(x, rows, axis=0)[None], True, layer.batch_first)
    tape = layer.forward(x, _as_state(repeated), training=False)
    found = run_backward(tape.record, Loss(d_final_state=seeds), Asked(input=False, parameters=frozenset()))
    parts = found.initial_state if isinstance(found.initial_state, tuple) else (found.initial_state,)
    flat = [part.swapaxes(0, 1).reshape(-1, rows, own) for part, own in zip(parts, sizes, strict=True)]
    return np.concatenate(flat, axis=2)


def _as_state(arrays: list[Array]) -> Any:
    return arrays[0] if len(arrays) == 1 else tuple(arrays)
