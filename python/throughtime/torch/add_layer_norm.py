"""Residual add and LayerNorm on tensors: an autograd function in eager mode, an operator in graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..layers import add_layer_norm as layer_norm
from ..layers.add_layer_norm import Saved
from .base import check_is_tensor
from .compiling import is_traced
from .places import PLACES, check_tensor, check_weight, tensor_of
from .unsupported import applied, check_transforms, once_differentiable, second_derivative, unsupported


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, *, scale: float = 1.0, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """``sum = x + scale branch`` and ``LN(sum)``, as :func:`throughtime.add_layer_norm`, for autograd."""
    check_weight("weight", weight)
    for name, tensor in (("x", x), ("branch", branch)):
        check_is_tensor(name, tensor)
    if torch.is_autocast_enabled(weight.device.type):
        x, branch = x.to(weight.dtype), branch.to(weight.dtype)
    for name, tensor in (("x", x), ("branch", branch), ("bias", bias)):
        check_tensor(name, tensor, weight)
    if is_traced(x):
        total, normalised, _ = operator(x, branch, weight, bias, scale, eps)
    else:
        check_transforms()
        total, normalised = applied(AddLayerNormFunction, x, branch, weight, bias, scale, eps)
    return total, normalised


def _forward(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, its normalisation, and four numbers per row for the backward."""
    place = PLACES[x.device.type]
    with place.working(x):
        arrays = [place.array_of(tensor) for tensor in (x, branch, weight, bias)]
        total, normalised, saved = layer_norm.add_layer_norm(*arrays, scale=scale, eps=eps)
        return tensor_of(total, x.dtype), tensor_of(normalised, x.dtype), tensor_of(saved.statistics)


def _backward(
    d_total: Tensor | None, d_normalised: Tensor | None, total: Tensor, statistics: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias. The branch's is that of x times `scale`."""
    place = PLACES[total.device.type]
    with place.working(total):
        d_sum, d_norm = (None if d is None else place.array_of(d) for d in (d_total, d_normalised))
        kept = (place.array_of(total), place.array_of(statistics), place.contiguous_array_of(weight))
        d_x, _, d_weight, d_bias = layer_norm.backward(d_sum, d_norm, Saved(*kept, 1.0, True))
        return tensor_of(d_x, total.dtype), tensor_of(d_weight, total.dtype), tensor_of(d_bias, total.dtype)


class AddLayerNormFunction(Function):
    """The autograd function used in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, normalised, statistics = _forward(x, branch, weight, bias, scale, eps)
        ctx.save_for_backward(total, statistics, weight)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return total, normalised

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, d_normalised: Tensor | None) -> Any:
        if d_total is None and d_normalised is None:
            return (None,) * 6
        total, statistics, weight = ctx.saved_tensors
        d_x, d_weight, d_bias = _backward(d_total, d_normalised, total, statistics, weight)
        d_branch = d_x if ctx.scale == 1 else d_x * ctx.scale
        return (
            *once_differentiable([d_x, d_branch, d_weight, d_bias], [d_total, d_normalised, total, weight]),
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise unsupported("forward-mode derivatives, only backward")


@torch.library.custom_op("throughtime::add_layer_norm", mutates_args=(), device_types=("cpu", "cuda"))
def operator(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, its normalisation, and the `statistics` for `operator_backward`."""
    return _forward(x, branch, weight, bias, scale, eps)


@operator.register_fake
def _(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows, wide = x.numel() // x.shape[-1], torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty((rows, 4), dtype=wide)


@torch.library.custom_op("throughtime::add_layer_norm_backward", mutates_args=(), device_types=("cpu", "cuda"))
def operator_backward(
    d_total: Tensor | None, d_normalised: Tensor | None, total: Tensor, statistics: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    return _backward(d_total, d_normalised, total, statistics, weight)


@operator_backward.register_fake
def _(
    d_total: Tensor | None, d_normalised: Tensor | None, total: Tensor, statistics: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, ctx.scale, _ = inputs
    total, _, statistics = output
    ctx.save_for_backward(total, statistics, weight)
    ctx.set_materialize_grads(False)


def _operator_gradients(ctx: Any, d_total: Tensor | None, d_normalised: Tensor | None, _: Tensor | None) -> Any:
    if d_total is None and d_normalised is None:
        return (None,) * 6
    d_x, d_weight, d_bias = operator_backward(d_total, d_normalised, *ctx.saved_tensors)
    return d_x, d_x if ctx.scale == 1 else d_x * ctx.scale, d_weight, d_bias, None, None


def _second_derivative(ctx: Any, *d_gradients: Tensor | None) -> Any:
    raise second_derivative()


operator.register_autograd(_operator_gradients, setup_context=_keep)
operator_backward.register_autograd(_second_derivative)
