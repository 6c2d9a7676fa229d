"""Tensors of the CPU as NumPy arrays on the same memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Array
from .unsupported import unsupported

HALVES = (torch.bfloat16, torch.float16)  # kernels of the CPU compute in float32 where weights are of these


def array_of(tensor: Tensor) -> Array:
    """A view of a tensor's memory; a copy of what lies there in half precision, or in another sign than is meant."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype in HALVES:
        tensor = tensor.float()
    try:
        array: Array = (tensor.resolve_neg() if tensor.is_neg() else tensor).numpy()
    except (RuntimeError, TypeError) as error:
        raise unsupported(f"a tensor without memory that NumPy can see ({error})") from None
    return array
