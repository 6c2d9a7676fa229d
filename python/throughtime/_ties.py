"""Arrays under several names: which are one and the same memory, and which overlap."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from operator import attrgetter
from typing import Any

import numpy as np

from ._arguments import Array

_OWNERS = frozenset({type(None)})
_base = attrgetter("base")


def are_plain(arrays: Iterable[Any]) -> bool:
    """Whether none is of a subclass of NumPy's arrays, which kernels would take for what it derives from."""
    return set(map(type, arrays)) <= {np.ndarray}


def may_share(arrays: Collection[Any], owners: Set[type] = _OWNERS) -> bool:
    """False where all are different arrays of memory of their own: their bases are of these types."""
    try:
        bases = set(map(type, map(_base, arrays)))
    except AttributeError:  # of what is no array
        return True
    return len(set(map(id, arrays))) < len(arrays) or not bases <= owners


def by_memory(label: str, arrays: Mapping[str, Array], *, apart: bool) -> list[list[str]]:
    """The names, those of views of one and the same memory together, transposed or not; with `apart`, a ValueError
    where others overlap.
    """
    groups: dict[Any, list[str]] = {}
    for name, array in arrays.items():
        groups.setdefault(_place(array) if array.size else name, []).append(name)
    if apart:
        _check_apart(label, {names[0]: arrays[names[0]] for names in groups.values() if arrays[names[0]].size})
    return list(groups.values())


def in_memory_order(array: Array, like: Array) -> Array:
    """`array` as a vector, in the order in which an array laid out as `like` has the same entries in memory."""
    flat: Array = array.transpose(_order(like)).reshape(-1)
    return flat


def from_memory_order(flat: Array, like: Array) -> Array:
    """The inverse of `in_memory_order`."""
    order = _order(like)
    back: Array = flat.reshape([like.shape[axis] for axis in order]).transpose(np.argsort(order))
    return back


def _order(array: Array) -> list[int]:
    """The axes by their steps in memory, the longest first."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def _place(array: Array) -> tuple[Any, ...]:
    """What views of one and the same memory have in common; of memory with gaps, those of the same layout."""
    dense = array.transpose(_order(array)).flags.c_contiguous
    layout = (array.size,) if dense else (array.shape, array.strides)
    return array.__array_interface__["data"][0], array.dtype, *layout


def _check_apart(label: str, arrays: Mapping[str, Array]) -> None:
    bounds = sorted((*np.lib.array_utils.byte_bounds(array), name) for name, array in arrays.items())
    for i, (_, end, name) in enumerate(bounds):
        for start, _, other in bounds[i + 1 :]:
            if start >= end:
                break
            if np.shares_memory(arrays[name], arrays[other]):
                raise ValueError(
                    f"{label}[{other!r}] overlaps {label}[{name!r}] in memory, expected all of the same memory or none"
                )
