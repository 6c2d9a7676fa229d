"""CUDA tensors as device arrays and back, without copies, and new device arrays in torch's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arguments import Array
from ..cuda.array import DeviceArray
from ..cuda.dtypes import HELD_AS
from ..cuda.extension import extension
from .unsupported import unsupported

_SOME = 256  # dummy address for empty tensors: for 0, NumPy would allocate memory


def array_of(tensor: Tensor) -> DeviceArray:
    """A view of a tensor's memory, which keeps the tensor alive."""
    tensor = tensor.resolve_neg()
    try:
        address = tensor.data_ptr()
    except RuntimeError as error:
        raise unsupported(f"a tensor without memory ({error})") from None
    if not address and tensor.numel():
        raise unsupported("a tensor without memory")
    return _view(tensor, address, str(tensor.dtype)[6:])  # without "torch."


def _view(tensor: Tensor, address: int, dtype: str) -> DeviceArray:
    held = HELD_AS[dtype]
    step = held.itemsize
    strides = [step * stride for stride in tensor.stride()]
    return DeviceArray(extension().view(address or _SOME, tensor.shape, strides, held, tensor), dtype)


def tensor_of(array: DeviceArray) -> Tensor:
    """The tensor from which `allocator` made this array, or a new one on its memory if the array is a view of it."""
    view, tensor = array._view, _owner(array._view)
    strides = tuple(stride // view.itemsize for stride in view.strides)
    if tensor.shape == view.shape and tensor.stride() == strides:
        return tensor
    storage = tensor.untyped_storage()
    offset = (view.__array_interface__["data"][0] - storage.data_ptr()) // view.itemsize if view.size else 0
    # Not a view for autograd: callers may write to the results of a function.
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, offset, view.shape, strides)


def _owner(view: Array) -> Tensor:
    owner: Any = view
    while isinstance(owner, np.ndarray):
        owner = owner.base
    tensor: Tensor = owner
    return tensor


def allocator(device: torch.device) -> Callable[[tuple[int, ...], str], DeviceArray]:
    """A function that makes arrays from new tensors: torch's caching allocator, streams and graph pools own them."""

    def allocate(shape: tuple[int, ...], dtype: str) -> DeviceArray:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        return _view(tensor, tensor.data_ptr(), dtype)

    return allocate
