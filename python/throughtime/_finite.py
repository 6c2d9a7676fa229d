"""Find where the numbers of an array stop being finite."""

from __future__ import annotations

import numpy as np

from ._arguments import Array
from .backend.host import Host
from .backend.protocol import Backend

_AT_ONCE = 2**20  # numbers that are checked together


def rows_finite(backend: Backend, array: Array) -> Array:
    """Whether all numbers are finite, for every timestep and sequence of an array (T, B, F); on the host."""
    steps, batch = array.shape[:2]
    found = np.ones((steps, batch), np.bool_)
    some = max(1, _AT_ONCE // max(1, batch * array.shape[2]))
    for start in range(0, steps if batch else 0, some):
        part = array[start : start + some]
        rows = part.shape[0] * batch
        found[start : start + some] = backend.finite(part.reshape(rows, array.shape[2])).reshape(-1, batch)
    return found


def not_finite_row(array: Array, batch_first: bool) -> str | None:
    """The first timestep and sequence of an array (T, B, F), or (T, F), whose row is not finite, in words."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3):
        return None
    in_time = array[:, None] if array.ndim == 2 else array.swapaxes(0, 1) if batch_first else array
    found = first_of(~rows_finite(Host, in_time), reverse=False)
    if found is None:
        return None
    return f"timestep {found[0]}" + (f", in sequence {found[1]}" if array.ndim == 3 else "")


def raise_fault(fault: str | None) -> None:
    """Raise FloatingPointError if there is a fault."""
    if fault is not None:
        raise FloatingPointError(fault)


def first_of(broken: Array, *, reverse: bool) -> tuple[int, int] | None:
    """Timestep and sequence of the first true value of (T, B) in a direction's order, or None."""
    steps = np.flatnonzero(broken.any(axis=1))
    if not steps.size:
        return None
    t = int(steps[-1] if reverse else steps[0])
    return t, int(np.flatnonzero(broken[t])[0])


def last_of(valid: Array, reverse: bool) -> Array:
    """Mask of the last valid step (T, B) of each sequence, in a direction's order."""
    last = valid.copy()
    if reverse:
        last[1:] = False
    else:
        last[:-1] &= ~last[1:]
    return last
