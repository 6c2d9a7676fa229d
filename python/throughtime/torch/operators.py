"""Forward and backward as operators of torch.library, which torch.compile and torch.export keep as single nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .kernels import Call
from .plan import plan_of
from .recorder import address_of
from .unsupported import second_derivative


@torch.library.custom_op("throughtime::recurrent", mutates_args=(), device_types=("cpu", "cuda"))
def recurrent(
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    masks: Sequence[Tensor],
    plan: str,
    medium: bool,
) -> list[Tensor]:
    """Output, final states, and the arrays `kept` for `recurrent_backward`; see `kernels.forward`."""
    return kernels.forward(Call(plan_of(plan), medium, weights, lengths, masks), x, state)


@recurrent.register_fake
def _(
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    masks: Sequence[Tensor],
    plan: str,
    medium: bool,
) -> list[Tensor]:
    return kernels.empty_forward(Call(plan_of(plan), medium, weights, lengths, masks), x)


@torch.library.custom_op("throughtime::recurrent_backward", mutates_args=(), device_types=("cpu", "cuda"))
def recurrent_backward(
    d_results: Sequence[Tensor | None],
    x: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    masks: Sequence[Tensor],
    kept: Sequence[Tensor],
    plan: str,
    medium: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """The wanted gradients; see `kernels.backward`."""
    call = Call(plan_of(plan), medium, weights, lengths, masks)
    return kernels.backward(call, x, kept, d_results, wanted, address_of(weights))


@recurrent_backward.register_fake
def _(
    d_results: Sequence[Tensor | None],
    x: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    masks: Sequence[Tensor],
    kept: Sequence[Tensor],
    plan: str,
    medium: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    return kernels.empty_backward(Call(plan_of(plan), medium, weights, lengths, masks), x, wanted)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, _, weights, lengths, masks, plan, medium = inputs
    ctx.visible = 1 + len(plan_of(plan).architecture.states)
    ctx.constants = plan, medium
    ctx.counts = len(weights), len(masks), len(output) - ctx.visible
    ctx.save_for_backward(x, lengths, *weights, *masks, *output[ctx.visible :])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_results: list[Tensor | None]) -> Any:
    x, lengths, *rest = ctx.saved_tensors
    weights, masks, kept = (list(group) for group in _split(rest, ctx.counts))
    needs_x, needs_states, needs_weights = ctx.needs_input_grad[:3]
    wanted = [needs_x, any(needs_states), *needs_weights]
    given = d_results[: ctx.visible]
    found = iter(recurrent_backward(given, x, weights, lengths, masks, kept, *ctx.constants, wanted))
    d_x = next(found) if needs_x else None
    d_state = [next(found) if any(needs_states) else None for _ in needs_states]
    d_weights = [next(found) if needs else None for needs in needs_weights]
    return d_x, d_state, d_weights, None, [None] * len(masks), None, None


def _second_derivative(ctx: Any, d_gradients: list[Tensor | None]) -> Any:
    raise second_derivative()


recurrent.register_autograd(_backward, setup_context=_keep)
recurrent_backward.register_autograd(_second_derivative)


def _split(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    groups, start = [], 0
    for count in counts:
        groups.append(tensors[start : start + count])
        start += count
    return groups
