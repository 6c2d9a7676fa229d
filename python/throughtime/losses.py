"""Losses with their gradients: ``loss, d_prediction = f(prediction, target)``, summed in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._arguments import Array, as_array, float_array

__all__ = ["cross_entropy", "mse"]

_BLOCK = 1 << 18  # float64 values worked on at a time: 2 MB, so that no float64 copy of everything is made


def cross_entropy(logits: Any, targets: Any, ignore_index: int = -100) -> tuple[float, Array]:
    """Return the mean cross entropy of integer classes, in nats, and its gradient.

    ``loss = mean(log(sum_j exp(logits_j)) - logits_target)`` and
    ``d_logits = (softmax(logits) - onehot(target)) / count``, over the targets that are not `ignore_index`; computed
    in float64 with the largest logit taken out first.

    Parameters
    ----------
    logits : (..., C) array
        Unnormalised log probabilities, float32 or float64.
    targets : (...) integer array
        Classes, each in [0, C) or `ignore_index`.
    ignore_index : int
        Targets of this value count for nothing: not in the loss, not in the mean, and their gradient is zero.

    Returns
    -------
    loss : float
        0.0 where every target is ignored or there is none. (torch gives NaN with a zero gradient, which poisons
        averages of the loss; a batch of nothing but padding is no error.)
    d_logits : (..., C) array
        dL/dlogits, of the dtype of `logits`.

    Raises
    ------
    TypeError
        If `logits` is not float32 or float64, or `targets` not integer.
    ValueError
        If shapes do not fit, or a target is no class.

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
    targets = _classes(targets, logits.shape, ignore_index)
    rows, ids = logits.reshape(-1, classes), targets.reshape(-1)
    d_rows = np.empty(rows.shape, logits.dtype)
    kept = ids != ignore_index
    count = int(np.count_nonzero(kept))
    total = sum(
        _cross_entropy_block(rows[part], ids[part], kept[part], count, d_rows[part])
        for part in _parts(len(rows), classes)
    )
    return (total / count if count else 0.0), d_rows.reshape(logits.shape)


def mse(prediction: Any, target: Any) -> tuple[float, Array]:
    """Return the mean squared error and its gradient, ``2 (prediction - target) / prediction.size``.

    Parameters
    ----------
    prediction : (...) array
        float32 or float64.
    target : (...) array
        Of the same shape and dtype: nothing is broadcast, nothing is cast.

    Returns
    -------
    loss : float
        0.0 for empty arrays.
    d_prediction : (...) array
        dL/dprediction, of the dtype of `prediction`.

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
    target = float_array("target", target, prediction.dtype, prediction.shape)
    d_prediction = np.empty(prediction.shape, prediction.dtype)
    flat, wanted, d_flat = prediction.reshape(-1), target.reshape(-1), d_prediction.reshape(-1)
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite error is an infinite loss, not a warning
        for part in _parts(flat.size, 1):
            difference = np.subtract(flat[part], wanted[part], dtype=np.float64)
            total += float(np.square(difference).sum())
            np.multiply(difference, 2 / flat.size, out=d_flat[part], casting="same_kind")
    return (total / flat.size if flat.size else 0.0), d_prediction


def _floats(name: str, value: Any) -> Array:
    array = as_array(name, value)
    if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
    return array


def _classes(targets: Any, shape: tuple[int, ...], ignore_index: Any) -> Array:
    """The targets as an array of classes in [0, C) or `ignore_index`."""
    targets = as_array("targets", targets)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | np.integer):
        raise TypeError(f"ignore_index must be an int, got {ignore_index!r}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets has dtype {targets.dtype}, expected integers")
    if targets.shape != shape[:-1]:
        raise ValueError(f"targets has shape {targets.shape}, expected {shape[:-1]} (logits has shape {shape})")
    wrong = ((targets < 0) | (targets >= shape[-1])) & (targets != ignore_index)
    if wrong.any():
        where = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(
            f"targets[{', '.join(map(str, where))}] is {targets[where]}, expected a class in "
            f"[0, {shape[-1]}) or ignore_index={ignore_index}"
        )
    classes: Array = targets.astype(np.intp, copy=False)
    return classes


def _parts(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _cross_entropy_block(logits: Array, ids: Array, kept: Array, count: int, d_logits: Array) -> float:
    """The summed loss of some rows (N, C); writes their gradient."""
    index = np.flatnonzero(kept), ids[kept]
    with np.errstate(invalid="ignore", over="ignore"):  # infinite logits give NaN or infinity, not a warning
        shifted = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
        at_target = shifted[index]
        exponentials = np.exp(shifted, out=shifted)
        sums = exponentials.sum(axis=1)
        exponentials /= (sums * max(count, 1))[:, None]
        exponentials[index] -= 1 / max(count, 1)
    np.copyto(d_logits, exponentials, casting="same_kind")
    d_logits[~kept] = 0
    return float((np.log(sums[kept]) - at_target).sum())
