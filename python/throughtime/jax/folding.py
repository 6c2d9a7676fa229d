"""`jax.vmap` of a function that already has a batch axis: the mapped axis is merged into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Function = Callable[..., list[Any]]
Axes = Sequence[int | None]


def fold(fun: Function, axes: Axes, result_axes: Axes, size: int, mapped: Sequence[bool], operands: Any) -> list[Any]:
    """Map `fun` over the `size` entries along axis 0 of the `mapped` operands; results are stacked along axis 0.

    `axes` and `result_axes` are the positions of `fun`'s own batch axis. If a mapped operand (a weight) or a result (a
    sum over the batch) has None, the entries are processed one after another.
    """
    into = [axis for axis in result_axes if axis is not None]
    if len(into) < len(result_axes) or any(
        axis is None and is_mapped for axis, is_mapped in zip(axes, mapped, strict=True)
    ):
        return _in_turn(fun, mapped, operands)
    folded = [
        operand if axis is None else _merge(operand if is_mapped else _repeat(operand, size), axis)
        for operand, axis, is_mapped in zip(operands, axes, mapped, strict=True)
    ]
    results = fun(*folded)
    return [_split(result, axis, size) for result, axis in zip(results, into, strict=True)]


def foldable(fun: Function, axes: Axes, result_axes: Axes) -> Function:
    """`fun` with `fold` as its rule under `jax.vmap`."""
    function = jax.custom_batching.custom_vmap(fun)

    @function.def_vmap  # type: ignore[untyped-decorator]
    def rule(size: int, mapped: Sequence[bool], *operands: Any) -> tuple[list[Any], list[bool]]:
        results = fold(function, axes, result_axes, size, mapped, operands)
        return results, [True] * len(results)

    called: Function = function
    return called


def _in_turn(fun: Function, mapped: Sequence[bool], operands: Any) -> list[Any]:
    def one(given: list[Any]) -> list[Any]:
        rest = iter(given)
        return fun(*(next(rest) if is_mapped else operand for operand, is_mapped in zip(operands, mapped, strict=True)))

    results: list[Any] = jax.lax.map(
        one, [operand for operand, is_mapped in zip(operands, mapped, strict=True) if is_mapped]
    )
    return results


def _repeat(array: Any, size: int) -> Any:
    return jnp.broadcast_to(array, (size, *array.shape))


def _merge(array: Any, axis: int) -> Any:
    """(N, ..., B, ...) as (..., N * B, ...), with B at `axis` of a single entry."""
    shape = (*array.shape[1 : axis + 1], array.shape[0] * array.shape[axis + 1], *array.shape[axis + 2 :])
    return jnp.moveaxis(array, 0, axis).reshape(shape)


def _split(array: Any, axis: int, size: int) -> Any:
    """The inverse of `_merge`."""
    batch = array.shape[axis] // size
    return jnp.moveaxis(array.reshape(*array.shape[:axis], size, batch, *array.shape[axis + 1 :]), axis, 0)
