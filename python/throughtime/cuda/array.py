"""Arrays on the GPU, exchanged through DLPack and ``__cuda_array_interface__``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import EllipsisType, NoneType
from typing import Any, NoReturn

import numpy as np

from .._arguments import Array, check_unmasked
from .dtypes import HELD_AS, dtype_name, held, shown
from .extension import current_stream, extension

_BASIC = (int, np.integer, slice, EllipsisType, NoneType)


class DeviceArray:
    """An array in the memory of a GPU, with views, copies and exchange with other libraries, but no arithmetic.

    :func:`to_device`, :func:`from_dlpack` and layers on the device make it. torch, CuPy and JAX accept it through
    DLPack (``torch.from_dlpack(array)``), without a copy.

    Attributes
    ----------
    shape, ndim, size, nbytes, strides
        As in NumPy.
    dtype : str
        ``"float32"``, ``"bfloat16"``, ``"float16"``, or the name of NumPy's type.
    """

    __slots__ = ("__weakref__", "_view", "dtype")
    __array_ufunc__ = None  # numpy_array + device_array is a TypeError

    def __init__(self, view: Array, dtype: str) -> None:
        """`view` has the address of device memory and keeps it alive; its contents must not be read on the host."""
        self._view, self.dtype = view, dtype

    # Shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self._view.shape

    @property
    def ndim(self) -> int:
        return self._view.ndim

    @property
    def size(self) -> int:
        return self._view.size

    @property
    def nbytes(self) -> int:
        return self._view.nbytes

    @property
    def itemsize(self) -> int:
        return self._view.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return self._view.strides

    @property
    def device(self) -> str:
        return "cuda"

    def __len__(self) -> int:
        return len(self._view)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype!r}, device={self.device!r})"

    # Views

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(self._view[_basic(key)], self.dtype)

    def swapaxes(self, axis1: int, axis2: int) -> DeviceArray:
        """A view with two axes interchanged."""
        return DeviceArray(self._view.swapaxes(axis1, axis2), self.dtype)

    def squeeze(self, axis: int | tuple[int, ...] | None = None) -> DeviceArray:
        """A view without axes of length 1, or without the given ones."""
        return DeviceArray(self._view.squeeze(axis), self.dtype)

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view if this array has no gaps, else a copy."""
        return DeviceArray(self.contiguous()._view.reshape(*shape), self.dtype)

    def contiguous(self) -> DeviceArray:
        """This array if its rows have no gaps, else a copy."""
        return self if self._view.flags.c_contiguous and self._view.flags.aligned else self.copy()

    # Contents

    def copy(self) -> DeviceArray:
        """A copy without gaps."""
        other = empty(self.shape, self.dtype)
        extension().copy(other._view, self._view, current_stream())
        return other

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write a device array of the same dtype, or a host array or a number."""
        to = self._view[_basic(key)]
        if not to.flags.writeable:
            raise ValueError("this array is read-only")
        if isinstance(value, int) and value == 0 and to.flags.c_contiguous:
            extension().clear(to, current_stream())
            return
        if isinstance(value, np.ndarray | int | float | np.generic):
            value = to_device(np.asarray(value), self.dtype)
        extension().copy(to, self._operand("value", value, to), current_stream())

    def __iadd__(self, other: Any) -> DeviceArray:
        own = self._view
        extension().add(own, self._operand("other", other, own), self.dtype, current_stream())
        return self

    def _operand(self, name: str, value: Any, to: Array) -> Array:
        """`value` as an operand of a write into `to`, a view of this array: broadcast to its shape, without overlap."""
        array = as_device_array(name, value)
        if array.dtype != self.dtype:
            raise TypeError(f"{name} has dtype {array.dtype}, expected {self.dtype} (nothing is cast on the device)")
        if np.may_share_memory(to, array._view):
            array = array.copy()
        return array._view if array.shape == to.shape else np.broadcast_to(array._view, to.shape)

    def __itruediv__(self, divisor: float) -> DeviceArray:
        own = self.contiguous()
        extension().drop(own._view, own._view, None, 1 / divisor, self.dtype, current_stream())
        if own is not self:
            self[...] = own
        return self

    def numpy(self) -> Array:
        """A copy in host memory, after all earlier work. bfloat16 becomes float32, exactly."""
        own = self.contiguous()
        host = np.empty(self.shape, self._view.dtype)
        if self.size:
            extension().copy_bytes(host, own._view, current_stream())
        extension().synchronise(current_stream())
        return shown(host, self.dtype)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a DeviceArray is not copied to the host unasked: array.numpy()")

    def __bool__(self) -> NoReturn:
        raise TypeError("the numbers of a DeviceArray are on the device: array.numpy()")

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceArray:
        memo[id(self)] = copied = self.copy()
        return copied

    def __reduce__(self) -> NoReturn:
        raise TypeError("a DeviceArray cannot be pickled: array.numpy() can, and so can a layer after layer.to('cpu')")

    # Exchange

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = extension().dlpack_device()
        return device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule of the same memory; the consumer's stream waits for the work of the current stream."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"dl_device is {dl_device}, but the array is on {self.__dlpack_device__()}")
        if stream == 0:
            raise ValueError("stream must not be 0, which DLPack leaves open; 1 is the default stream")
        own = self.copy() if copy else self
        versioned = max_version is not None and max_version[0] >= 1
        if not versioned and not own._view.flags.writeable:
            raise BufferError("this array is read-only, which needs DLPack 1.0 or later: pass max_version=(1, 0)")
        if stream != -1:
            _order(current_stream(), stream or 1)
        return extension().to_dlpack(own._view, self.dtype, versioned)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16; DLPack has")
        return {
            "shape": self.shape,
            "typestr": "<f2" if self.dtype == "float16" else self._view.dtype.str,
            "data": (self._view.ctypes.data if self.size else 0, not self._view.flags.writeable),
            "strides": None if self._view.flags.c_contiguous else self.strides,
            "version": 3,
            "stream": current_stream() or 1,
        }


def empty(shape: tuple[int, ...], dtype: str) -> DeviceArray:
    """An uninitialised array on the current stream."""
    allocate = _allocate.get()
    if allocate:
        return allocate(shape, dtype)
    return DeviceArray(extension().empty(shape, HELD_AS[dtype], current_stream()), dtype)


_allocate: ContextVar[Callable[[tuple[int, ...], str], DeviceArray] | None] = ContextVar("allocate", default=None)


@contextmanager
def allocated_by(allocate: Callable[[tuple[int, ...], str], DeviceArray]) -> Iterator[None]:
    """In this context, allocate new arrays from another library's memory, on the current stream."""
    token = _allocate.set(allocate)
    try:
        yield
    finally:
        _allocate.reset(token)


def zeros(shape: tuple[int, ...], dtype: str) -> DeviceArray:
    """An array of zeros on the current stream."""
    array = empty(shape, dtype)
    extension().clear(array._view, current_stream())
    return array


def to_device(array: Any, dtype: Any = None) -> DeviceArray:
    """Copy a NumPy array to the device.

    Parameters
    ----------
    array : array
        Anything that NumPy can convert to an array.
    dtype : str, optional
        The type on the device, such as ``"bfloat16"``; by default that of `array`.

    Raises
    ------
    TypeError
        If `array` is not an array of numbers, or the device does not support `dtype`.
    """
    if isinstance(array, np.ndarray):
        check_unmasked("array", array)
    host = np.asarray(array)
    name = dtype_name(host.dtype.name if dtype is None else dtype)
    host = held(host, name)
    copied = empty(host.shape, name)
    if host.size:
        extension().copy_bytes(copied._view, host, current_stream())
    return copied


def from_dlpack(array: Any) -> DeviceArray:
    """View an array of another library on the same device, without a copy.

    Parameters
    ----------
    array : array
        With ``__dlpack__`` or ``__cuda_array_interface__``: torch's, CuPy's, JAX's. Later work on the current stream
        waits for the earlier work on the array.

    Raises
    ------
    TypeError
        If `array` is not such an array, or not on the device.
    """
    return as_device_array("array", array)


def is_on_device(value: Any) -> bool:
    """Whether `value` is an array on the current device."""
    if isinstance(value, DeviceArray):
        return True
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        device: tuple[int, int] = extension().dlpack_device()
        return tuple(map(int, value.__dlpack_device__())) == device
    return hasattr(value, "__cuda_array_interface__")


def as_device_array(name: str, value: Any) -> DeviceArray:
    """`value` as a device array, without a copy; `name` is its name in errors."""
    if isinstance(value, DeviceArray):
        return value
    if isinstance(value, np.ndarray | np.generic | list | tuple | int | float):
        raise TypeError(f"{name} is on the host ({type(value).__name__}): throughtime.cuda.to_device({name})")
    if hasattr(value, "detach"):  # a torch tensor that requires grad refuses to be exported as it is
        value = value.detach()
    if hasattr(value, "__dlpack__"):
        return _by_dlpack(name, value)
    if hasattr(value, "__cuda_array_interface__"):
        return _by_interface(name, value)
    raise TypeError(
        f"{name} must be an array with __dlpack__ or __cuda_array_interface__ on the device, got {type(value).__name__}"
    )


def _by_dlpack(name: str, value: Any) -> DeviceArray:
    own = extension().dlpack_device()
    device = tuple(map(int, value.__dlpack_device__()))
    if device != own:
        raise TypeError(f"{name} is on DLPack's device {device}, expected the current one, {own}")
    asks: dict[str, Any] = {} if extension().is_stand_in else {"stream": current_stream() or 1}
    try:
        capsule = value.__dlpack__(max_version=(1, 0), **asks)
    except TypeError:  # from before DLPack 1.0
        capsule = value.__dlpack__(**asks)
    try:
        view, dtype, *_ = extension().from_dlpack(capsule)
    except (BufferError, TypeError) as error:
        raise TypeError(f"{name} cannot be read: {error}") from None
    return DeviceArray(view, dtype)


def _by_interface(name: str, value: Any) -> DeviceArray:
    about = value.__cuda_array_interface__
    if about.get("mask") is not None:
        raise TypeError(f"{name} is a masked array, expected one without a mask")
    read_as = np.dtype(about["typestr"])
    dtype = dtype_name(read_as.name)
    if not read_as.isnative:
        raise TypeError(f"{name} has dtype {about['typestr']}, expected this machine's byte order")
    pointer, read_only = about["data"]
    shape = tuple(about["shape"])
    strides = about.get("strides") or _strides_without_gaps(shape, read_as.itemsize)
    if about.get("stream") is not None:
        _order(about["stream"], current_stream() or 1)
    view = extension().view(pointer or 0, shape, strides, HELD_AS[dtype], value)
    if read_only:
        view.flags.writeable = False
    return DeviceArray(view, dtype)


def _strides_without_gaps(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    strides = []
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _order(earlier: int, later: int) -> None:
    """Make later work on stream `later` wait for the work on `earlier`; 0 and 1 both are the default stream."""
    if (earlier or 1) != (later or 1):
        extension().order(earlier, later)


def _basic(key: Any) -> tuple[Any, ...]:
    """`key` as a tuple of basic indices, for which NumPy makes a view without reading the array."""
    if type(key) is int:  # the most common case
        return (key, ...)
    keys = key if isinstance(key, tuple) else (key,)
    for part in keys:
        if not isinstance(part, _BASIC) or isinstance(part, bool):
            raise TypeError(
                f"a DeviceArray is indexed by integers, slices, None and ..., got {type(part).__name__}; "
                "other libraries, by DLPack, have more"
            )
    return keys if ... in keys else (*keys, ...)
