"""`truncation_error`: how far the gradient of truncated backpropagation through time is from the full one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arguments import UNBOUNDED, Array, features_together, float_array, is_integer, number, size
from .._memory import with_room
from .._torch_modules import from_torch
from ..recurrent import Recurrent
from ..recurrent.arguments import time_major
from ..recurrent.backward import Asked, Loss, run_backward
from ..recurrent.record import Record
from .joint_state import check_recurrent

__all__ = ["truncation_error"]


@with_room
def truncation_error(
    layer: Recurrent,
    x: Any,
    k: int | Sequence[int],
    d_output: Any = None,
    *,
    state: Any = None,
    lengths: Any = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Measure how far the gradient of truncated BPTT is from the full gradient, for each parameter.

    The error of a parameter's gradient is ``||g_k - g|| / ||g||`` in Frobenius norms, where g_k is the gradient that
    ``tape.backward(d_output, truncate=k)`` returns, and g the one without `truncate`. The windows are counted from each
    direction's first step, so a loss at step t reaches back to the beginning of its window only: ``t % k`` steps. The
    error need not fall with every k: if T is a multiple of k, the last window is whole; for k + 1 it may be short.

    The gradients are computed in the layer's type and in inference mode (no dropout, zoneout's expectation). Rounding
    limits the errors of a float32 layer to about 1e-6. Each k costs one backward; monitors of the layer do not see it.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        Any number of layers and directions; modules of ``torch.nn`` and ``throughtime.torch`` are accepted too.
    x : (T, B, I) array
        Input, as for ``layer.forward``.
    k : int, or sequence of int
        Steps of a window, as `truncate` of ``tape.backward``.
    d_output : (T, B, D*H) array, optional
        Gradient of the loss with respect to the output. None for ones at every step.
    state : optional
        Initial state, as for ``layer.forward``.
    lengths : (B,) integers, optional
        As for ``layer.forward``.
    tolerance : float, optional
        Return the smallest of the given k whose error is at most this, instead of the errors.

    Returns
    -------
    errors : dict of str to float or array
        By the name of the parameter. A float for a single k, else an array (len(k),) of float64. 0 if both gradients
        are zero, ``inf`` if only the full one is, ``nan`` if a gradient is not finite. Exactly 0 for k >= T.
    smallest : dict of str to int or float
        With `tolerance`: for each parameter, the smallest of the given k with an error of at most `tolerance`, or
        ``inf`` if there is none. ``max(smallest.values())`` serves all parameters if the errors fall with k. The k are
        tried in ascending order, and no more once every parameter has found its own.

    Raises
    ------
    TypeError
        If `layer` is not recurrent, k is not an int or a sequence of int, or an array has another dtype.
    ValueError
        If k is empty or below 1, `tolerance` is not in [0, inf), or a size does not fit.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((200, 4, 8), dtype=np.float32)
    >>> lstm = tt.LSTM(8, 16, seed=0)
    >>> errors = tt.truncation_error(lstm, x, [2, 8, 32])
    >>> errors["weight_hh_l0"].round(3)
    array([0.382, 0.135, 0.035])
    >>> tt.truncation_error(lstm, x, range(1, 51), tolerance=0.05)
    {'weight_ih_l0': 28, 'weight_hh_l0': 20, 'bias_ih_l0': 20, 'bias_hh_l0': 20}
    """
    layer, x, d_output, state = from_torch(layer, x, d_output, state)
    check_recurrent("truncation_error", layer)
    windows = _windows(k)
    most = None if tolerance is None else number("tolerance", tolerance, 0, np.inf, open_high=True)
    tape = layer.forward(x, state, lengths, training=False)
    shape, dtype = tape.output.shape, layer.dtype
    given = np.ones(shape, dtype) if d_output is None else float_array("d_output", d_output, dtype, shape)
    record = tape.record
    loss = Loss(features_together(time_major(given, record.batched, layer.batch_first)))
    full = _gradients(record, loss, None)
    if most is not None:
        return _smallest(record, loss, full, sorted(set(windows)), most)
    each = [_errors(record, loss, full, window) for window in windows]
    if is_integer(k):
        return each[0]
    return {name: np.array([errors[name] for errors in each]) for name in full}


def _windows(k: Any) -> list[int]:
    if is_integer(k):
        return [size("k", k, most=UNBOUNDED)]
    try:
        given = list(k)
    except TypeError:
        raise TypeError(f"k must be an int or a sequence of int, got {k!r}") from None
    if not given:
        raise ValueError("k is empty, expected at least one number of steps")
    return [size(f"k[{i}]", value, most=UNBOUNDED) for i, value in enumerate(given)]


def _gradients(record: Record, loss: Loss, truncate: int | None) -> dict[str, Array]:
    asked = Asked(input=False, initial_state=False, truncate=truncate)
    found: dict[str, Array] = run_backward(record, loss, asked).parameters
    return found


def _errors(record: Record, loss: Loss, full: dict[str, Array], truncate: int) -> dict[str, float]:
    if truncate >= record.sizes[0]:  # nothing is cut
        return {name: 0.0 if np.isfinite(gradient).all() else np.nan for name, gradient in full.items()}
    cut = _gradients(record, loss, truncate)
    return {name: _relative_error(cut[name], gradient) for name, gradient in full.items()}


def _relative_error(found: Array, expected: Array) -> float:
    """||found - expected|| / ||expected||, also where squares would leave the range of floats."""
    wide = [array.astype(np.float64) for array in (found, expected)]
    if not all(np.isfinite(array).all() for array in wide):
        return np.nan
    scale = max(float(np.abs(array).max(initial=0)) for array in wide)
    if not scale:
        return 0.0
    ours, full = (array / scale for array in wide)
    norm = float(np.linalg.norm(full))
    return float(np.linalg.norm(ours - full)) / norm if norm else np.inf


def _smallest(
    record: Record, loss: Loss, full: dict[str, Array], windows: list[int], tolerance: float
) -> dict[str, int | float]:
    """For each parameter, the first of `windows` whose error is at most `tolerance`."""
    smallest: dict[str, int | float] = dict.fromkeys(full, np.inf)
    for window in windows:
        for name, error in _errors(record, loss, full, window).items():
            if smallest[name] == np.inf and error <= tolerance:
                smallest[name] = window
        if np.inf not in smallest.values():
            break
    return smallest
