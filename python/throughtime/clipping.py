"""The norm of all gradients together, and scaling them down to a largest norm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ._arguments import Array, number
from ._backend import refuse_device_array

__all__ = ["clip_grad_norm"]


def clip_grad_norm(grads: Any, max_norm: float) -> float:
    """Scale gradients down, in place, so that their common Euclidean norm is at most `max_norm`.

    Parameters
    ----------
    grads : dict of str to array, or what ``backward`` returned
        The arrays that are scaled; of the latter, ``grads.parameters``.
    max_norm : float
        The largest norm allowed; ``math.inf`` only measures.

    Returns
    -------
    norm : float
        Of all arrays together before scaling, computed in float64 after division by the largest entry, so that tiny
        and huge gradients neither underflow nor overflow. NaN or infinity where an entry is: the gradients
        are then left as they are, and the caller can skip the step. (torch would scale by zero or NaN.)

    Raises
    ------
    TypeError
        If `grads` is neither, or an entry is no array of floating-point numbers.
    ValueError
        If `max_norm` is negative or NaN, or an array cannot be written to.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> grads = {"weight": np.array([3.0, 0.0]), "bias": np.array([4.0])}
    >>> tt.clip_grad_norm(grads, 1.0)
    5.0
    >>> bool(np.isclose(grads["weight"][0], 0.6))
    True
    """
    arrays = _gradients(grads)
    limit = number("max_norm", max_norm, 0, math.inf)
    norm = _norm(arrays)
    if limit < norm < math.inf:
        for array in arrays:
            np.multiply(array, limit / norm, out=array, dtype=np.float64, casting="same_kind")
    return norm


def _gradients(grads: Any) -> list[Array]:
    mapping = getattr(grads, "parameters", grads)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"grads must be a dict of arrays or what backward returned, got {type(grads).__name__}")
    for name, array in mapping.items():
        refuse_device_array("clip_grad_norm", f"grads[{name!r}]", array)
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"grads[{name!r}] must be an array of floating-point numbers, got {got}")
        if not array.flags.writeable:
            raise ValueError(f"grads[{name!r}] is read-only and cannot be scaled in place")
    return list(mapping.values())


def _norm(arrays: Iterable[Array]) -> float:
    arrays = [array for array in arrays if array.size]
    # NaN last: Python's max would drop it.
    largest = float(np.max([max(array.max(), -array.min()) for array in arrays])) if arrays else 0.0
    if not 0 < largest < math.inf:
        return largest
    scaled = (np.divide(array, largest, dtype=np.float64) for array in arrays)
    return largest * math.sqrt(sum(float(np.square(array, out=array).sum()) for array in scaled))
