"""Choose the backend for an array or a device name, and refuse those that a function does not support."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _arguments
from ..cuda.array import DeviceArray
from ..cuda.extension import extension
from .host import Host
from .protocol import Backend

DLPACK_CUDA = 2  # kDLCUDA


def require_host(what: str, device: str) -> None:
    """Raise unless `device` is the CPU; `what`, in the error, supports layers on the CPU only."""
    if device != "cpu":
        raise NotImplementedError(f"{what} is for layers on the CPU; this one is on {device!r}: .to('cpu')")


def refuse_device_array(what: str, name: str, value: Any) -> None:
    """Raise if `value` is on a device; `what`, in the error, supports host arrays only."""
    if isinstance(value, DeviceArray):
        raise NotImplementedError(
            f"{what} works on arrays of the host, but {name} is on {value.device!r}; "
            "torch's functions take such arrays by DLPack, in place"
        )


def check_floats(what: str, name: str, value: Any) -> None:
    """Raise unless `value` is a NumPy array of floats; `what`, in the error, supports only those."""
    refuse_device_array(what, name, value)
    if isinstance(value, np.ndarray):
        _arguments.check_unmasked(name, value)
    if not isinstance(value, np.ndarray) or not _arguments.is_floating(value.dtype):
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be an array of floating-point numbers, got {got}")


def backend_holding(value: Any) -> Backend:
    """The backend for a caller's array: CUDA's if it is on a CUDA device, else the host's."""
    if isinstance(value, np.ndarray):
        return Host
    if isinstance(value, DeviceArray):
        return backend_of("cuda")
    if hasattr(value, "__dlpack_device__"):
        return backend_of("cuda" if int(value.__dlpack_device__()[0]) == DLPACK_CUDA else "cpu")
    return backend_of("cuda" if hasattr(value, "__cuda_array_interface__") else "cpu")


def backend_of(device: Any) -> Backend:
    """The backend that `device` names.

    Raises
    ------
    ValueError
        If no backend has that name.
    RuntimeError
        If it is CUDA, but this build has no CUDA or there is no device.
    """
    if device == "cpu":
        return Host
    if device != "cuda":
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    from .cuda import Cuda  # here, because most programs never need it

    extension()
    return Cuda
