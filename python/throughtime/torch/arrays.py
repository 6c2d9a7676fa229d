"""Tensors of the CPU as NumPy arrays on the same memory."""

from __future__ import annotations

from torch import Tensor

from .._arguments import Array
from .unsupported import unsupported


def array_of(tensor: Tensor) -> Array:
    """A view of a tensor's memory."""
    try:
        array: Array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
    except (RuntimeError, TypeError) as error:
        raise unsupported(f"a tensor without memory that NumPy can see ({error})") from None
    return array
