"""CPU tensors as NumPy arrays on the same memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Array
from .unsupported import unsupported

HALVES = (torch.bfloat16, torch.float16)  # for weights of these types, CPU kernels compute in float32


def array_of(tensor: Tensor) -> Array:
    """A view of a tensor's memory; a copy if the tensor is in half precision or lazily negated (torch's neg bit)."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype in HALVES:
        tensor = tensor.float()
    try:
        array: Array = (tensor.resolve_neg() if tensor.is_neg() else tensor).numpy()
    except (RuntimeError, TypeError) as error:
        raise unsupported(f"a tensor without memory that NumPy can see ({error})") from None
    return array
