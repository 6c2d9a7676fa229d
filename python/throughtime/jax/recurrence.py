"""One layer and direction as a function that jax can transform.

Its gradient is a `jax.custom_vjp`, wrapped in a primitive that does two things that no decorator does. With `jax.vmap`
inside `grad`, the primitive is batched before it is differentiated, so that the weights' gradient is still one fused
sum over all sequences. It also knows which operands are differentiated, so that the backward computes nothing for the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .folding import Function, fold, foldable
from .kernels import Kind, Operands, backward, forward
from .sharding import vary, varying_axes


def recurrence(kind: Kind, operands: Operands) -> list[Any]:
    """Returns the output (T, B, P) and the final states (B, P), (B, H)."""
    results: list[Any] = _primitive.bind(*vary(operands, varying_axes(*operands)), kind=kind)
    return results


def _infer(*operands: Any, kind: Kind) -> list[Any]:
    """The primitive when nothing is differentiated: only the last state is kept."""
    common, state, _ = kind.split(operands)
    output, *states = forward(kind, common, state, keep=False)
    return [output, *(rows[1] for rows in states)]


def _differentiable(kind: Kind, input: bool, parameters: bool) -> Function:
    """The primitive as a `jax.custom_vjp`, with the gradients of x and of the parameters only if asked for."""
    states, sums = (1,) * kind.states, (None,) * kind.parameters * parameters
    common_axes, count = kind.common_axes, len(kind.common_axes)

    def run_forward(*operands: Any) -> list[Any]:
        return forward(kind, operands[:count], operands[count:], keep=True)

    def run_backward(*operands: Any) -> list[Any]:
        kept, loss = operands[count : count + kind.states + 1], operands[count + kind.states + 1 :]
        return backward(kind, operands[:count], kept, loss, input=input, parameters=parameters)

    keep = foldable(run_forward, (*common_axes, *(0,) * kind.states), (1, *states, kind.saved_axis))
    pull = foldable(
        run_backward,
        (*common_axes, *states, kind.saved_axis, 1, *(0,) * kind.states),
        (*(0,) * kind.states, *(1,) * input, *sums, *(1,) * len(kind.timesteps)),
    )

    def fwd(*operands: Any) -> tuple[list[Any], Any]:
        common, state, _ = kind.split(operands)
        output, *kept = keep(*common, *state)
        return [output, *(_final(kind, rows) for rows in kept[:-1])], (common, kept)

    def bwd(residuals: Any, loss: Sequence[Any]) -> tuple[Any, ...]:
        common, kept = residuals
        found = iter(pull(*common, *kept, *loss))
        d_state = [next(found) for _ in range(kind.states)]
        d_input = next(found) if input else None
        d_parameters = [next(found) if parameters else None for _ in range(kind.parameters)]
        return d_input, None, *d_parameters, *d_state, *found

    function = jax.custom_vjp(partial(_infer, kind=kind))
    function.defvjp(fwd, bwd)
    called: Function = function
    return called


def _final(kind: Kind, states: Any) -> Any:
    """The final state in the direction's order, from all T + 2 rows; see cpp/cpu/recurrent/history.hpp."""
    return states[1 if kind.reverse else -2]


def _fold(operands: Operands, axes: Sequence[Any], *, kind: Kind) -> tuple[list[Any], list[int]]:
    mapped = [axis is not None for axis in axes]
    size = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    first = [jax.numpy.moveaxis(a, axis, 0) if m else a for a, axis, m in zip(operands, axes, mapped, strict=True)]
    own = (*kind.common_axes, *(0,) * kind.states, *(1,) * len(kind.timesteps))
    results = fold(partial(_primitive.bind, kind=kind), own, (1, *(0,) * kind.states), size, mapped, first)
    return results, [0] * len(results)


def _jvp(operands: Operands, tangents: Operands, *, kind: Kind) -> Any:
    moving = [type(tangent) is not ad.Zero for tangent in tangents]
    function = _differentiable(kind, moving[0], any(moving[2 : 2 + kind.parameters]))

    def of_moving(*given: Any) -> list[Any]:
        rest = iter(given)
        return function(*(next(rest) if moves else operand for operand, moves in zip(operands, moving, strict=True)))

    def only_moving(all_: Operands) -> list[Any]:
        return [one for one, moves in zip(all_, moving, strict=True) if moves]

    return jax.jvp(of_moving, only_moving(operands), only_moving(tangents))


def _shapes(*operands: Any, kind: Kind) -> list[Any]:
    results: list[Any] = jax.make_jaxpr(partial(_infer, kind=kind))(*operands).out_avals
    return results


_primitive = Primitive("throughtime_recurrence")
_primitive.multiple_results = True
_primitive.def_impl(_infer)
_primitive.def_abstract_eval(_shapes)
mlir.register_lowering(_primitive, mlir.lower_fun(_infer, multiple_results=True))
batching.primitive_batchers[_primitive] = _fold
ad.primitive_jvps[_primitive] = _jvp
