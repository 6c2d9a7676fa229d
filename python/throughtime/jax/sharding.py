"""Along which axes of a mesh an array varies inside `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

if hasattr(jax.lax, "pcast"):

    def _cast(array: Any, axes: tuple[Any, ...]) -> Any:
        return jax.lax.pcast(array, axes, to="varying")

else:  # before jax 0.8
    _cast = jax.lax.pvary


def varying_axes(*arrays: Any) -> tuple[Any, ...]:
    """The mesh axes along which one of `arrays` varies, as `jax.shard_map` tracks it with `check_vma=True`."""
    return tuple(sorted(set().union(*map(_varies_along, arrays)), key=str))


def vary(arrays: Sequence[Any], axes: Sequence[Any]) -> list[Any]:
    """`arrays`, each of which varies along all of `axes` now.

    This moves nothing. Where an array did not vary along an axis, its gradient is the sum over that axis.
    """
    missing = [tuple(axis for axis in axes if axis not in _varies_along(array)) for array in arrays]
    return [_cast(array, new) if new else array for array, new in zip(arrays, missing, strict=True)]


def _varies_along(array: Any) -> frozenset[Any]:
    kind = jax.typeof(array)
    axes: frozenset[Any] = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    return axes
