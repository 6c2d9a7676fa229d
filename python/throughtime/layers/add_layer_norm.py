"""Residual add and LayerNorm in one pass over memory: ``sum = x + scale branch``, ``LN(sum) weight + bias``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .._arguments import Array, number
from .._memory import with_room
from ..backend.choose import backend_holding

if TYPE_CHECKING:
    from .._core import LayerNormBackward, LayerNormForward

__all__ = ["add_layer_norm", "add_layer_norm_backward"]


class Saved:
    """Saved by `add_layer_norm` for its backward: the sum, four numbers per row, and a copy of the weight."""

    sum: Array
    statistics: Array
    weight: Array
    scale: float

    def __init__(self, total: Array, statistics: Array, weight: Array, scale: float, added: bool) -> None:
        self.sum, self.statistics, self.weight, self.scale = total, statistics, weight, scale
        self.added = added  # whether `sum` is x + branch, not x itself

    @property
    def nbytes(self) -> int:
        """Bytes held in addition to the sum."""
        return self.statistics.nbytes + self.weight.nbytes


def add_layer_norm(
    x: Any, branch: Any, weight: Any, bias: Any, *, scale: float = 1.0, eps: float = 1e-5
) -> tuple[Array, Array, Saved]:
    """Add a scaled branch and normalise the sum over its last axis, in one pass over memory.

    ``sum = x + scale branch`` and ``normalised = (sum - mean) / sqrt(variance + eps) weight + bias``. Rows far from
    zero keep their precision (the mean has twice the working precision), and a row of equal numbers gives `bias`.
    Finite rows of any magnitude are normalised, even if their squares overflow. A NaN or infinity stays in its row.

    Parameters
    ----------
    x, branch : (..., F) array
        float32 or float64, of one shape. On a CUDA device, `throughtime.cuda.DeviceArray` and objects with DLPack or
        ``__cuda_array_interface__``, in float32, bfloat16 or float16: the sum is rounded to that type before it is
        normalised, everything else is float32. Results are on the device of the arguments.
    weight, bias : (F,) array
        In the dtype of `x`.
    scale : float
        Factor of the branch.
    eps : float
        Added to the variance.

    Returns
    -------
    sum, normalised : (..., F) array
    saved : object
        For :func:`add_layer_norm_backward`. It refers to `sum`: do not write into that before the backward.

    Raises
    ------
    TypeError
        If the dtype or device of an array differs from that of `x`; nothing is cast or copied.
    ValueError
        If shapes do not fit, F is 0, or `scale` or `eps` is out of range.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x, branch = np.random.default_rng(0).standard_normal((2, 1000, 32, 64), dtype=np.float32)
    >>> weight, bias = np.ones(64, np.float32), np.zeros(64, np.float32)
    >>> total, normalised, saved = tt.add_layer_norm(x, branch, weight, bias)
    >>> d_x, d_branch, d_weight, d_bias = tt.add_layer_norm_backward(total, normalised, saved)
    >>> d_x.shape, d_branch is d_x, d_weight.shape
    ((1000, 32, 64), True, (64,))
    """
    backend = backend_holding(x)
    x = backend.as_array("x", x)
    backend.check_dtype("x", x, backend.float_like(x.dtype))
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {x.shape}, expected (..., F) with F >= 1")
    branch = backend.float_array("branch", branch, x.dtype, x.shape)
    weight = backend.float_array("weight", weight, x.dtype, x.shape[-1:])
    bias = backend.float_array("bias", bias, x.dtype, x.shape[-1:])
    finite = sys.float_info.max
    scale = number("scale", scale, -finite, finite)
    total, normalised, saved = forward(x, branch, weight, bias, scale, check_eps(eps))
    assert total is not None
    assert saved is not None
    return total, normalised, saved


def add_layer_norm_backward(d_sum: Any, d_normalised: Any, saved: Saved) -> tuple[Array, Array, Array, Array]:
    """Backpropagate through :func:`add_layer_norm`, in one pass over memory. May be called repeatedly.

    Parameters
    ----------
    d_sum, d_normalised : (..., F) array or None
        Gradients of the loss with respect to `sum` and `normalised`, in their dtype; one of them may be None.
    saved : object
        The third result of `add_layer_norm`.

    Returns
    -------
    d_x, d_branch : (..., F) array
        ``d_branch`` is ``d_x`` itself if ``scale`` is 1, else ``scale d_x``.
    d_weight, d_bias : (F,) array
        Summed in float64 beyond a few rows, in an order that does not depend on the number of threads. On a device,
        summed in float32, in an order that depends on the shape and the device.

    Raises
    ------
    TypeError, ValueError
        If `saved` has another type, both gradients are None, or a dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> total, normalised, saved = tt.add_layer_norm(np.eye(2), np.eye(2), np.ones(2), np.zeros(2), scale=0.5)
    >>> d_x, d_branch, d_weight, d_bias = tt.add_layer_norm_backward(np.ones((2, 2)), None, saved)
    >>> d_branch
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    if not isinstance(saved, Saved):
        raise TypeError(f"saved must be what add_layer_norm returned, got {type(saved).__name__}")
    if d_sum is None and d_normalised is None:
        raise ValueError("d_sum and d_normalised are both None, expected at least one array")
    backend, dtype, shape = backend_holding(saved.sum), saved.sum.dtype, saved.sum.shape
    if d_sum is not None:
        d_sum = backend.float_array("d_sum", d_sum, dtype, shape)
    if d_normalised is not None:
        d_normalised = backend.float_array("d_normalised", d_normalised, dtype, shape)
    return backward(d_sum, d_normalised, saved)


def check_eps(eps: Any) -> float:
    """`eps` as a float above zero, so that a row of equal numbers does not divide by zero."""
    return number("eps", eps, 0, sys.float_info.max, open_low=True)


@with_room
def forward(
    x: Array,
    branch: Array | None,
    weight: Array,
    bias: Array,
    scale: float,
    eps: float,
    *,
    keep_sum: bool = True,
    save: bool = True,
) -> tuple[Array | None, Array, Saved | None]:
    """`add_layer_norm` for checked arguments; without a branch, x itself is the sum. `save` implies `keep_sum`."""
    backend = backend_holding(x)
    x, weight, bias = backend.contiguous(x), backend.contiguous(weight), backend.contiguous(bias)
    normalised = backend.empty(x.shape, x.dtype)
    if branch is None:
        total: Array | None = x
    else:
        total = backend.empty(x.shape, x.dtype) if keep_sum or save else None
    statistics = backend.empty((x.size // x.shape[-1], 4), backend.sum_dtype(x.dtype)) if save else None
    problem: LayerNormForward = {
        "x": _rows(x),
        "branch": None if branch is None else _rows(backend.contiguous(branch)),
        "weight": weight,
        "bias": bias,
        "scale": scale,
        "eps": eps,
        "sum": None if branch is None or total is None else _rows(total),
        "normalised": _rows(normalised),
        "statistics": statistics,
    }
    backend.layer_norm_forward(problem)
    if statistics is None:
        return total, normalised, None
    assert total is not None
    return (
        total,
        normalised,
        Saved(total, statistics, weight.copy(), scale, branch is not None),
    )  # the weight may change


@with_room
def backward(d_sum: Array | None, d_normalised: Array | None, saved: Saved) -> tuple[Array, Array, Array, Array]:
    """`add_layer_norm_backward` for checked arguments."""
    backend = backend_holding(saved.sum)
    new = backend.zeros if d_normalised is None else backend.empty
    d_weight, d_bias = (new(saved.weight.shape, saved.weight.dtype) for _ in range(2))
    if d_normalised is None:
        assert d_sum is not None
        d_x = d_sum.copy()  # a result must not share memory with an argument
        return d_x, d_x if saved.scale == 1 else backend.scaled(d_x, saved.scale), d_weight, d_bias
    d_x = backend.empty(saved.sum.shape, saved.sum.dtype)
    d_branch = d_x if saved.scale == 1 else backend.empty(d_x.shape, d_x.dtype)
    problem: LayerNormBackward = {
        "sum": _rows(backend.contiguous(saved.sum)),
        "statistics": saved.statistics,
        "weight": saved.weight,
        "scale": saved.scale,
        "d_sum": None if d_sum is None else _rows(backend.contiguous(d_sum)),
        "d_normalised": _rows(backend.contiguous(d_normalised)),
        "d_x": _rows(d_x),
        "d_branch": None if d_branch is d_x else _rows(d_branch),
        "d_weight": d_weight,
        "d_bias": d_bias,
    }
    backend.layer_norm_backward(problem)
    return d_x, d_branch, d_weight, d_bias


def _rows(array: Array) -> Array:
    """A view of a contiguous array as a matrix."""
    return array.reshape(-1, array.shape[-1])
