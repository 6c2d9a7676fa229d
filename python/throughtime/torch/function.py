"""The autograd function of a recurrent layer, used in eager mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from . import kernels
from .kernels import Call
from .plan import Plan
from .recorder import address_of
from .unsupported import once_differentiable, unsupported


class RecurrentFunction(Function):
    """Output and final states, from input, initial states (none for zeros) and weights.

    The values that the backward reads are saved as tensors: torch frees them after the backward, and raises if an input
    or a weight was changed in place in the meantime.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        medium: bool,
        lengths: Tensor | None,
        masks: list[Tensor],
        states: int,
        x: Tensor,
        *state_and_weights: Tensor,
    ) -> tuple[Tensor, ...]:
        state, weights = state_and_weights[:states], state_and_weights[states:]
        results = kernels.forward(Call(plan, medium, weights, lengths, masks), x, state)
        visible = 1 + len(plan.architecture.states)
        ctx.save_for_backward(x, *state_and_weights, *masks, *results[visible:])
        ctx.call = plan, medium, lengths
        ctx.address = address_of(weights)  # before hooks replace the saved tensors by copies
        ctx.states, ctx.counts = states, (len(weights), len(masks))
        ctx.set_materialize_grads(False)
        return tuple(results[:visible])

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> Any:
        plan, medium, lengths = ctx.call
        weights_end = 1 + ctx.states + ctx.counts[0]
        masks_end = weights_end + ctx.counts[1]
        saved = ctx.saved_tensors
        x, weights = saved[0], saved[1 + ctx.states : weights_end]
        needs_input, *needs = ctx.needs_input_grad[5:]
        needs_state, needs_weights = needs[: ctx.states], needs[ctx.states :]
        call = Call(plan, medium, weights, lengths, saved[weights_end:masks_end])
        wanted = [needs_input, any(needs_state), *needs_weights]
        found = iter(kernels.backward(call, x, saved[masks_end:], d_results, wanted, ctx.address))
        every = [needs_input, *(any(needs_state) for _ in needs_state), *needs_weights]
        gradients = [next(found) if needs else None for needs in every]
        return None, None, None, None, None, *once_differentiable(gradients, [*d_results, *saved[:weights_end]])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise unsupported("forward-mode derivatives, only backward")
