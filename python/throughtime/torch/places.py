"""The devices of tensors, the CPU and CUDA, and how calls differ between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..backend.choose import backend_of
from ..backend.protocol import Backend
from ..cuda.array import DeviceArray, allocated_by
from ..cuda.extension import stream
from . import arrays, device_arrays
from .base import check_is_tensor
from .unsupported import unsupported


class Cpu:
    """Tensors on the CPU, as NumPy arrays."""

    name = "the CPU"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, *arrays.HALVES)
    autocasts_results = True  # to the types that torch's modules return; else results have that of the weights

    def backend(self) -> Backend:
        """The backend of the NumPy interface for this device."""
        return backend_of("cpu")

    def computes_in(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the kernels' arrays for weights of this dtype."""
        return torch.float32 if dtype in arrays.HALVES else dtype

    def working(self, tensor: Tensor) -> AbstractContextManager[None]:
        """The context in which to run kernels that read this tensor."""
        torch.get_num_threads()  # its first call on a new thread applies torch.set_num_threads to that thread
        return nullcontext()

    def array_of(self, tensor: Tensor) -> Any:
        """A view of a tensor's memory."""
        return arrays.array_of(tensor)

    def contiguous_array_of(self, tensor: Tensor) -> Any:
        """The same in C order; a copy if the tensor has another order."""
        return self.array_of(tensor.contiguous())


class Cuda(Cpu):
    """Tensors on CUDA, as device arrays in torch's memory, on torch's current stream."""

    name = "CUDA"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    autocasts_results = False

    def backend(self) -> Backend:
        return backend_of("cuda")

    def computes_in(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    @contextmanager
    def working(self, tensor: Tensor) -> Iterator[None]:
        with self.current(tensor.device), allocated_by(device_arrays.allocator(tensor.device)):
            yield

    @contextmanager
    def current(self, device: torch.device) -> Iterator[None]:
        """Make the device current, and its current torch stream the library's stream."""
        with torch.cuda.device(device), stream(torch.cuda.current_stream(device).cuda_stream):
            yield

    def array_of(self, tensor: Tensor) -> DeviceArray:
        return device_arrays.array_of(tensor)


PLACES: dict[str, Cpu] = {"cpu": Cpu(), "cuda": Cuda()}  # by the type of a torch.device


def tensor_of(array: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on the memory of an array that was made in a `working` context; a copy if `dtype` differs."""
    tensor = device_arrays.tensor_of(array) if isinstance(array, DeviceArray) else torch.from_numpy(array)
    return tensor if dtype is None or tensor.dtype is dtype else tensor.to(dtype)


def check_weight(name: str, weight: Tensor) -> None:
    """Raise unless kernels support this weight's device and dtype, with which other tensors are compared."""
    check_is_tensor(name, weight)
    _check_device(name, weight)
    place = PLACES[weight.device.type]
    if weight.dtype not in place.dtypes:
        known = ", ".join(map(str, place.dtypes))
        raise unsupported(f"weights of {weight.dtype} on {place.name}, only {known} (under torch.autocast as well)")


def check_tensor(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Raise unless `tensor` is a tensor on the device of this weight, with its dtype."""
    check_is_tensor(name, tensor)
    if tensor.device == weight.device and tensor.dtype is weight.dtype:
        return
    _check_device(name, tensor)
    if tensor.device != weight.device:
        device = str(weight.device)
        raise ValueError(
            f"{name} is on device {str(tensor.device)!r}, expected {device!r}, that of the weights; use .to({device!r})"
        )
    dtype = weight.dtype
    raise TypeError(f"{name} has dtype {tensor.dtype}, expected {dtype}, that of the weights; use .to({dtype})")


def _check_device(name: str, tensor: Tensor) -> None:
    if tensor.device.type not in PLACES:
        raise unsupported(f"{name} on device {str(tensor.device)!r}, only on the CPU and on CUDA")
