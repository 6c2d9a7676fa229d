"""Errors for everything that the kernels do not support, with an alternative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def unsupported(what: str) -> NotImplementedError:
    """The error for features that torch's own modules may have and these do not."""
    return NotImplementedError(
        f"throughtime.torch does not support {what}; torch.nn.LSTM (RNN, GRU, LayerNorm) takes the same state_dict "
        "and may"
    )


def check_transforms() -> None:
    """Raise inside torch.func.grad, vmap and the like, and torch.jit.trace."""
    if torch._C._get_tracing_state() is not None:
        raise unsupported("torch.jit.trace, only torch.compile and torch.export")
    if torch._C._are_functorch_transforms_active():
        raise unsupported("torch.func transforms (grad, vmap, jvp, ...), only torch.autograd")


def applied(function: type[Function], *arguments: Any) -> Any:
    """``function.apply``, which has no type annotations in torch."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


class _OnceDifferentiable(Function):
    """Identity on gradients whose derivative raises an error; the inputs after them are those they depend on."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if tensor is None else tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor | None) -> Any:
        raise second_derivative()


def second_derivative() -> NotImplementedError:
    """The error for a backward through a backward."""
    return unsupported("second derivatives (backward through a backward made with create_graph=True)")


def once_differentiable(gradients: list[Tensor | None], inputs: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients; if torch records a graph of them, their derivative with respect to `inputs` raises an error."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    found: tuple[Tensor | None, ...] = applied(_OnceDifferentiable, len(gradients), *gradients, *inputs)
    return found
