"""Arrays on the GPU, in and out by DLPack and by ``__cuda_array_interface__``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import EllipsisType, NoneType
from typing import Any, NoReturn

import numpy as np

from .._arguments import Array, check_unmasked
from .extension import current_stream, extension
from .numbers import HELD_AS, dtype_name, held, shown

_BASIC = (int, np.integer, slice, EllipsisType, NoneType)


class DeviceArray:
    """An array in the memory of a GPU: of views, copies and exchange with other libraries, no more.

    It is made by :func:`to_device`, :func:`from_dlpack` and by layers on the device. torch, CuPy and JAX take it by
    DLPack (``torch.from_dlpack(array)``), in the same memory.

    Attributes
    ----------
    shape, ndim, size, nbytes, strides
        As NumPy's.
    dtype : str
        ``"float32"``, ``"bfloat16"``, ``"float16"``, or the name of NumPy's type.
    """

    __slots__ = ("__weakref__", "_view", "dtype")
    __array_ufunc__ = None  # numpy_array + device_array is a TypeError

    def __init__(self, view: Array, dtype: str) -> None:
        """`view` has the address of the device's memory, and keeps it: nobody may read what it shows."""
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
        return DeviceArray(self._view.swapaxes(axis1, axis2), self.dtype)

    def squeeze(self, axis: int | tuple[int, ...] | None = None) -> DeviceArray:
        return DeviceArray(self._view.squeeze(axis), self.dtype)

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view where this array is without gaps, else a copy."""
        return DeviceArray(self.contiguous()._view.reshape(*shape), self.dtype)

    def contiguous(self) -> DeviceArray:
        """This array where its rows are without gaps, else a copy."""
        return self if self._view.flags.c_contiguous and self._view.flags.aligned else self.copy()

    # Contents

    def copy(self) -> DeviceArray:
        """A copy without gaps."""
        other = empty(self.shape, self.dtype)
        extension().copy(other._view, self._view, current_stream())
        return other

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write an array of the device of the same dtype, or an array or a number of the host."""
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
        """What is read where `to`, a view of this array, is written: of its shape, and apart from it in memory."""
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
        """A copy in the host's memory, when the work before is done. bfloat16 becomes float32, exactly."""
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
        raise TypeError("a DeviceArray cannot be pickled: array.numpy()")

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
        """A DLPack capsule of the same memory, which the consumer's stream sees as the current stream leaves it."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"dl_device is {dl_device}, but the array is on {self.__dlpack_device__()}")
        if stream == 0:
            raise ValueError("stream must not be 0, which DLPack leaves open; 1 is the default stream")
        own = self.copy() if copy else self
        versioned = max_version is not None and max_version[0] >= 1
        if not versioned and not own._view.flags.writeable:
            raise BufferError("this array is read-only, which DLPack says from version 1.0 on: max_version=(1, 0)")
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
    """An array of the current stream that holds anything."""
    allocate = _allocate.get()
    if allocate:
        return allocate(shape, dtype)
    return DeviceArray(extension().empty(shape, HELD_AS[dtype], current_stream()), dtype)


_allocate: ContextVar[Callable[[tuple[int, ...], str], DeviceArray] | None] = ContextVar("allocate", default=None)


@contextmanager
def allocated_by(allocate: Callable[[tuple[int, ...], str], DeviceArray]) -> Iterator[None]:
    """Have another library's memory, on the current stream, for the new arrays of this context."""
    token = _allocate.set(allocate)
    try:
        yield
    finally:
        _allocate.reset(token)


def zeros(shape: tuple[int, ...], dtype: str) -> DeviceArray:
    """An array of the current stream that holds zeros."""
    array = empty(shape, dtype)
    extension().clear(array._view, current_stream())
    return array


def to_device(array: Any, dtype: Any = None) -> DeviceArray:
    """Copy a NumPy array to the device.

    Parameters
    ----------
    array : array
        Anything that NumPy makes an array of.
    dtype : str, optional
        The type on the device, such as ``"bfloat16"``; else that of `array`.

    Raises
    ------
    TypeError
        If `array` is no array of numbers, or `dtype` none of the device's.
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
        With ``__dlpack__`` or ``__cuda_array_interface__``: torch's, CuPy's, JAX's. The work on it so far comes before
        what the current stream is given from now on.

    Raises
    ------
    TypeError
        If `array` is none, or not on the device.
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
    """`value` as an array of the device, in the memory where it is; `name` is what errors call it."""
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
    """What `later` is given from now on waits for what `earlier` has; 0 and 1 both are the default stream."""
    if (earlier or 1) != (later or 1):
        extension().order(earlier, later)


def _basic(key: Any) -> tuple[Any, ...]:
    """`key` as a tuple of basic indices, by which NumPy gives a view and reads nothing."""
    if type(key) is int:  # as nearly always
        return (key, ...)
    keys = key if isinstance(key, tuple) else (key,)
    for part in keys:
        if not isinstance(part, _BASIC) or isinstance(part, bool):
            raise TypeError(
                f"a DeviceArray is indexed by integers, slices, None and ..., got {type(part).__name__}; "
                "other libraries, by DLPack, have more"
            )
    return keys if ... in keys else (*keys, ...)
