"""Losses with their gradients: ``loss, d_prediction = f(prediction, target)``, summed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core
from ._arguments import Array, as_array, check_shape, contiguous, is_integer, is_layer_dtype
from ._memory import with_room

__all__ = ["cross_entropy", "mse"]

_INT64 = np.iinfo(np.int64)


@with_room
def cross_entropy(logits: Any, targets: Any, ignore_index: int = -100) -> tuple[float, Array]:
    """Return the mean cross entropy of integer classes, in nats, and its gradient.

    ``loss = mean(log(sum_j exp(logits_j)) - logits_target)`` and
    ``d_logits = (softmax(logits) - onehot(target)) / count``, over the targets that are not `ignore_index`; computed in
    float64, with the largest logit subtracted first.

    Parameters
    ----------
    logits : (..., C) array
        Unnormalised log probabilities, float32 or float64.
    targets : (...) integer array
        Classes, each in [0, C) or `ignore_index`.
    ignore_index : int
        Targets of this value are ignored: they do not count in the loss or the mean, and their gradient is zero.

    Returns
    -------
    loss : float
        0.0 if every target is ignored or there are none. (torch returns NaN with a zero gradient, which makes averages
        of the loss NaN; a batch that contains only padding is not an error.)
    d_logits : (..., C) array
        dL/dlogits, in the dtype of `logits`.

    Raises
    ------
    TypeError
        If `logits` is not float32 or float64, or `targets` are not integers.
    ValueError
        If shapes do not fit, or a target is not a class.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> loss, d_logits = tt.cross_entropy(np.zeros((2, 4)), np.array([3, -100]))
    >>> round(loss, 6)  # log 4
    1.386294
    >>> d_logits
    array([[ 0.25,  0.25,  0.25, -0.75],
           [ 0.  ,  0.  ,  0.  ,  0.  ]])
    """
    logits = _floats("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have at least one class in its last axis, got shape {logits.shape}")
    classes = logits.shape[-1]
    targets = _integers(targets, logits.shape, ignore_index)
    d_logits = _core.empty(logits.shape, logits.dtype)
    total, count, wrong = _core.cross_entropy(
        {
            "logits": contiguous(logits).reshape(-1, classes),
            "targets": _as_int64(targets).reshape(-1),
            "ignore_index": min(max(int(ignore_index), _INT64.min), _INT64.max),
            "d_logits": d_logits.reshape(-1, classes),
        }
    )
    if wrong >= 0:
        where = tuple(int(index) for index in np.unravel_index(wrong, targets.shape))
        raise ValueError(
            f"targets[{', '.join(map(str, where))}] is {targets[where]}, expected a class in "
            f"[0, {classes}) or ignore_index={ignore_index}"
        )
    return (total / count if count else 0.0), d_logits


@with_room
def mse(prediction: Any, target: Any) -> tuple[float, Array]:
    """Return the mean squared error and its gradient, ``2 (prediction - target) / prediction.size``.

    Parameters
    ----------
    prediction : (...) array
        float32 or float64.
    target : (...) array
        Has the same shape and dtype: nothing is broadcast or cast.

    Returns
    -------
    loss : float
        0.0 for empty arrays.
    d_prediction : (...) array
        dL/dprediction, in the dtype of `prediction`.

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or the two differ.
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> loss, d_prediction = tt.mse(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
    >>> loss, d_prediction.tolist()
    (2.5, [1.0, -2.0])
    """
    prediction = _floats("prediction", prediction)
    target = as_array("target", target)
    if target.dtype != prediction.dtype:
        raise TypeError(
            f"target has dtype {target.dtype}, but prediction has {prediction.dtype} "
            f"(nothing is cast; use target.astype({str(prediction.dtype)!r}))"
        )
    check_shape("target", target, prediction.shape)
    d_prediction = _core.empty(prediction.shape, prediction.dtype)
    total = _core.squared_error(
        {
            "prediction": contiguous(prediction).reshape(-1),
            "target": contiguous(target).reshape(-1),
            "d_prediction": d_prediction.reshape(-1),
        }
    )
    return (total / prediction.size if prediction.size else 0.0), d_prediction


def _floats(name: str, value: Any) -> Array:
    array = as_array(name, value)
    if not is_layer_dtype(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
    return array


def _integers(targets: Any, shape: tuple[int, ...], ignore_index: Any) -> Array:
    """The targets as an array of integers of the right shape; their values are not checked."""
    array = as_array("targets", targets)
    if not is_integer(ignore_index):
        raise TypeError(f"ignore_index must be an int, got {ignore_index!r}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"targets has dtype {array.dtype}, expected integers")
    if array.shape != shape[:-1]:
        raise ValueError(f"targets has shape {array.shape}, expected {shape[:-1]} (logits has shape {shape})")
    return array


def _as_int64(integers: Array) -> Array:
    """As int64 in C order. Unsigned integers beyond its range become its largest value, not a negative one, which might
    equal ignore_index.
    """
    if integers.dtype.kind == "u" and integers.itemsize == 8:
        integers = np.minimum(integers, np.uint64(_INT64.max))
    converted: Array = contiguous(integers.astype(np.int64, copy=False))
    return converted
