"""Arrays under several names: find those in the same memory, and those that overlap."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from operator import attrgetter
from typing import Any

import numpy as np

from ._arguments import Array

_OWNERS = frozenset({type(None)})
_base = attrgetter("base")


def are_plain(arrays: Iterable[Any]) -> bool:
    """Whether all are plain NumPy arrays; kernels would treat a subclass as its base class."""
    return set(map(type, arrays)) <= {np.ndarray}


def may_share(arrays: Collection[Any], owners: Set[type] = _OWNERS) -> bool:
    """False if all are distinct arrays that own their memory, so that their bases have the types `owners`."""
    try:
        bases = set(map(type, map(_base, arrays)))
    except AttributeError:  # an entry is not an array
        return True
    return len(set(map(id, arrays))) < len(arrays) or not bases <= owners


def by_memory(label: str, arrays: Mapping[str, Array], *, apart: bool) -> list[list[str]]:
    """The names, grouped by memory: views of the same memory, transposed or not, are in one group. With `apart`, raises
    ValueError if other arrays overlap.
    """
    groups: dict[Any, list[str]] = {}
    for name, array in arrays.items():
        groups.setdefault(_place(array) if array.size else name, []).append(name)
    if apart:
        _check_apart(label, {names[0]: arrays[names[0]] for names in groups.values() if arrays[names[0]].size})
    return list(groups.values())


def in_memory_order(array: Array, like: Array) -> Array:
    """`array` as a vector, in the memory order of an array with the layout of `like`."""
    flat: Array = array.transpose(_order(like)).reshape(-1)
    return flat


def from_memory_order(flat: Array, like: Array) -> Array:
    """The inverse of `in_memory_order`."""
    order = _order(like)
    back: Array = flat.reshape([like.shape[axis] for axis in order]).transpose(np.argsort(order))
    return back


def _order(array: Array) -> list[int]:
    """The axes sorted by stride, the largest first."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def _place(array: Array) -> tuple[Any, ...]:
    """A key that views of the same memory share; views with gaps share it only if they have the same layout."""
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
