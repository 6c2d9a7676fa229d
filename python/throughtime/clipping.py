"""The joint norm of all gradients, and scaling them down to a maximum norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core
from ._arguments import native_floats, number
from ._ties import are_plain, by_memory, may_share
from .backend.choose import check_floats

__all__ = ["clip_grad_norm"]

_OWNERS = {type(None), type(_core.empty((1,), np.dtype(np.float32)).base)}  # in NumPy's memory; in the pool's


def clip_grad_norm(grads: Any, max_norm: float) -> float:
    """Scale gradients down, in place, so that their common Euclidean norm is at most `max_norm`.

    Parameters
    ----------
    grads : dict of str to array, or the result of ``backward``
        The arrays to scale; for the result of ``backward``, its ``grads.parameters``.
    max_norm : float
        The largest norm allowed; ``math.inf`` only measures.

    Returns
    -------
    norm : float
        The joint norm before scaling, computed in float64, so that tiny and huge gradients neither underflow nor
        overflow (float64 gradients that would are divided by their largest entry first). If an entry is NaN or
        infinite, so is the norm; the gradients are then left unchanged, and the caller can skip the step. (torch would
        scale by zero or NaN.)

    Raises
    ------
    TypeError
        If `grads` is neither, or an entry is not an array of floating-point numbers.
    ValueError
        If `max_norm` is negative or NaN, an array is read-only, or two arrays overlap in part. (One array under two
        names counts once, and is scaled once.)

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
    mapping = getattr(grads, "parameters", grads)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"grads must be a dict of arrays or the result of backward, got {type(grads).__name__}")
    limit = number("max_norm", max_norm, 0, math.inf)
    if may_share(mapping.values(), _OWNERS):
        mapping = _once(mapping)
    arrays = list(mapping.values())
    norm = _core.clip(arrays, limit) if are_plain(arrays) else None
    return _clip_converted(mapping, limit) if norm is None else norm


def _once(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping, with each array under one name only."""
    for name, array in mapping.items():
        check_floats("clip_grad_norm", f"grads[{name!r}]", array)
    return {first: mapping[first] for first, *_ in by_memory("grads", mapping, apart=True)}


def _clip_converted(mapping: Mapping[str, Any], limit: float) -> float:
    """Scale copies and copy them back, if the kernels cannot use all arrays themselves."""
    for name, array in mapping.items():
        check_floats("clip_grad_norm", f"grads[{name!r}]", array)
        if not array.flags.writeable:
            raise ValueError(f"grads[{name!r}] is read-only and cannot be scaled in place")
    copies = [native_floats(array) for array in mapping.values()]
    norm = _core.clip(copies, limit)
    assert norm is not None
    if limit < norm < math.inf:
        for array, copy in zip(mapping.values(), copies, strict=True):
            if copy is not array:
                array[...] = copy
    return norm
