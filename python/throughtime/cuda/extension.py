"""The extension `throughtime._cuda`, which not every build has, and the stream on which its work runs."""

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
    """`throughtime._cuda`, with the path of cuBLAS set.

    Raises
    ------
    RuntimeError
        If this build has no CUDA, or there is no device.
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
    """The path of the library in the package nvidia-cublas, if that is installed."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = nvidia.submodule_search_locations if nvidia else None
    found = [path for folder in folders or () for path in Path(folder).glob("*/lib/libcublas.so.*")]
    return str(max(found, default=""))


def is_available() -> bool:
    """Return whether this build has CUDA, and there is a device."""
    module = _built()
    return module is not None and module.device_count() > 0


def state() -> str:
    """For `show_config`: ``"not built"``, ``"built, no device"`` or the device's name."""
    module = _built()
    if module is None:
        return "not built"
    return str(module.device_name()) if module.device_count() else "built, no device"


def device_name() -> str:
    """Return the name of the current device.

    Raises
    ------
    RuntimeError
        If this build has no CUDA, or there is no device.
    """
    return str(extension().device_name())


def synchronize() -> None:
    """Wait until all work on the current stream is done.

    Raises
    ------
    RuntimeError
        If this build has no CUDA, or there is no device.
    """
    extension().synchronise(current_stream())


def empty_cache() -> None:
    """Return pooled memory of the current device that no array uses to the system."""
    extension().empty_cache()


def current_stream() -> int:
    """Return the ``cudaStream_t`` on which work runs, as a number; 0 is the default stream."""
    return _stream.get()


@contextmanager
def stream(handle: Any) -> Iterator[None]:
    """Run the work of this context on a stream.

    An array belongs to the stream on which it was made, and its memory returns to the pool in that stream's order. The
    stream must live as long as the array, and code that reads the array on another stream must keep it alive until that
    work is done. Calls of this library do not wait for arrays made on another stream: synchronise the streams first, as
    with torch's ``side.wait_stream(...)``. Arrays of other libraries are synchronised when they are passed.

    Parameters
    ----------
    handle : int, or a stream of another library
        A ``cudaStream_t`` as a number, an object with ``__cuda_stream__``, or a torch stream.

    Raises
    ------
    TypeError
        If `handle` is none of these.

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
