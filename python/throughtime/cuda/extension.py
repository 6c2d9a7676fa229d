"""The extension `throughtime._cuda`, which not every build has, and the stream on which its work goes."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

_stream: ContextVar[int] = ContextVar("throughtime.cuda.stream", default=0)


@functools.cache
def extension() -> ModuleType:
    """`throughtime._cuda`, which then knows where cuBLAS is.

    Raises
    ------
    RuntimeError
        If this build has none, or there is no device.
    """
    module = _built()
    if module is None:
        raise RuntimeError(
            "this build of throughtime has no CUDA; pip install . -Ccmake.define.THROUGHTIME_CUDA=ON builds it"
        )
    if not module.device_count():
        raise RuntimeError("there is no CUDA device")
    module.load_blas(_packaged_blas())
    return module


def _built() -> ModuleType | None:
    try:
        from .. import _cuda
    except ImportError:
        return None
    return _cuda


def _packaged_blas() -> str:
    """The library in the package nvidia-cublas, where that is installed."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = nvidia.submodule_search_locations if nvidia else None
    found = [path for folder in folders or () for path in Path(folder).glob("*/lib/libcublas.so.*")]
    return str(max(found, default=""))


def is_available() -> bool:
    """Whether this build has CUDA, and there is a device."""
    module = _built()
    return module is not None and module.device_count() > 0


def state() -> str:
    """For `show_config`: ``"not built"``, ``"built, no device"`` or the device's name."""
    module = _built()
    if module is None:
        return "not built"
    return str(module.device_name()) if module.device_count() else "built, no device"


def device_name() -> str:
    """The name of the current device."""
    return str(extension().device_name())


def synchronize() -> None:
    """Wait until the work given to the current stream is done."""
    extension().synchronise(current_stream())


def empty_cache() -> None:
    """Give pooled memory of the current device that no array uses back to the system."""
    extension().empty_cache()


def current_stream() -> int:
    """The ``cudaStream_t`` on which work goes, as a number; 0 is the default stream."""
    return _stream.get()


@contextmanager
def stream(handle: Any) -> Iterator[None]:
    """Send the work of this context to a stream.

    An array belongs to the stream on which it was made, and goes back to the pool in its order: the stream must live as
    long, and whoever reads the array on another one keeps it until that work is done. A call here that reads arrays
    made on another stream does not wait for it: order the two first, as with torch's ``side.wait_stream(...)``. Arrays
    of other libraries come in ordered.

    Parameters
    ----------
    handle : int, or a stream of another library
        A ``cudaStream_t`` as a number; an object with ``__cuda_stream__``; torch's streams.

    Raises
    ------
    TypeError
        If `handle` is neither.

    Examples
    --------
    >>> with throughtime.cuda.stream(torch.cuda.current_stream()):  # doctest: +SKIP
    ...     tape = layer.forward(x)
    """
    token = _stream.set(_number_of(handle))
    try:
        yield
    finally:
        _stream.reset(token)


def _number_of(handle: Any) -> int:
    if hasattr(handle, "__cuda_stream__"):
        _, number = handle.__cuda_stream__()
    else:
        number = getattr(handle, "cuda_stream", handle)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"handle must be a cudaStream_t as an int, or a stream, got {type(handle).__name__}")
    return number
