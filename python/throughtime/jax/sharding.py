"""Arrays on several devices: how they vary inside `jax.shard_map`, and how meshes with explicit axes split them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

if hasattr(jax.lax, "pcast"):

    def _cast(array: Any, axes: tuple[Any, ...]) -> Any:
        return jax.lax.pcast(array, axes, to="varying")

else:  # before jax 0.8
    _cast = jax.lax.pvary


def varying_axes(*arrays: Any) -> tuple[Any, ...]:
    """The mesh axes along which any of `arrays` varies, as `jax.shard_map` tracks it with `check_vma=True`."""
    return tuple(sorted(set().union(*map(_varies_along, arrays)), key=str))


def vary(arrays: Sequence[Any], axes: Sequence[Any]) -> list[Any]:
    """Mark `arrays` as varying along all of `axes`.

    No data moves. If an array did not vary along an axis, its gradient is the sum over that axis.
    """
    missing = [tuple(axis for axis in axes if axis not in _varies_along(array)) for array in arrays]
    return [_cast(array, new) if new else array for array, new in zip(arrays, missing, strict=True)]


def by_sequences(
    function: Callable[..., Any], layers: Any, x: Any, operands: Sequence[Any], *, axes: tuple[int | None, ...]
) -> Any:
    """Call `function(layers, *operands)`. If the type of `x` (T, B, I) splits its sequences over devices, each device
    runs its own sequences.

    `axes` has the axis of the sequences of each operand, a pytree of arrays; in results it is 1. Operands that are
    split along other axes are gathered.
    """
    shardings = [_sharding(leaf) for leaf in jax.tree.leaves(operands)]
    mesh = next((one.mesh for one in shardings if any(part is not None for part in one.spec)), None)
    if mesh is None:
        return function(layers, *operands)
    if not hasattr(jax.sharding, "reshard"):
        raise NotImplementedError(
            "an array is split along explicit axes of its mesh, for which throughtime.jax needs jax.sharding.reshard; "
            "use a newer jax, or axes of AxisType.Auto"
        )
    return _split(function, layers, axes, mesh, _sharding(x).spec[1], operands)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))  # the mesh of a type has no devices, and jit needs none
def _split(function: Callable[..., Any], layers: Any, axes: Any, mesh: Any, names: Any, operands: Any) -> Any:
    specs = [_spec(names, axis) for axis in axes]
    placed = [
        jax.tree.map(partial(jax.sharding.reshard, out_shardings=NamedSharding(mesh, spec)), operand)
        for operand, spec in zip(operands, specs, strict=True)
    ]
    if names is None:
        return function(layers, *placed)
    split = jax.shard_map(
        partial(function, layers),
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=_spec(names, 1),
        axis_names={names} if isinstance(names, str) else set(names),
    )
    return split(*placed)


def _spec(names: Any, axis: int | None) -> Any:
    return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, names)


def _sharding(array: Any) -> Any:
    """The sharding in an array's type, which names only explicit axes of a mesh."""
    return jax.typeof(array).sharding


def _varies_along(array: Any) -> frozenset[Any]:
    kind = jax.typeof(array)
    axes: frozenset[Any] = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    return axes
