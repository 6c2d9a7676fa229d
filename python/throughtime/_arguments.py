"""Checks of the caller's arguments. Every message names the argument, the value it got and the expected one."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._memory import with_room

Array: TypeAlias = NDArray[Any]


class SupportsDLPack(Protocol):
    """An array of NumPy, torch, jax, CuPy or another library."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


class SupportsArray(Protocol):
    """An object that NumPy converts to an array."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


ArrayLike: TypeAlias = SupportsDLPack | SupportsArray  # for the annotations of arguments that `as_array` reads

TIMESTEPS = ("hidden", "cell", "gates", "products", "parameter_norms")  # a backward may return these for every step
LARGEST_SIZE = 1 << 47  # bytes that a process can address
UNBOUNDED = sys.maxsize  # for values that another size limits anyway, such as the steps of a sequence

_LARGEST_FLOAT = int(sys.float_info.max)
_require = with_room(np.require)


def as_array(name: str, value: Any) -> Array:
    """View `value` (an array, or anything with DLPack or the buffer protocol) as a NumPy array."""
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray:
            check_unmasked(name, value)
        return plain(value)
    if hasattr(value, "detach"):  # a torch tensor that requires grad refuses to be exported
        value = value.detach()
    if hasattr(value, "resolve_neg"):  # torch's lazy negation, which DLPack ignores
        value = value.resolve_neg()
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            where = str(getattr(value, "device", ""))
            hint = f" (it is on {where}: layer.to('cuda') runs there)" if "cuda" in where else ""
            raise TypeError(f"{name} cannot be read as a NumPy array: {error}{hint}") from None
    if hasattr(value, "__array__") or hasattr(value, "__buffer__"):
        return np.asarray(value)
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}") from None


def as_host_floats(name: str, value: Any) -> Array:
    """`as_array` for weights of any float type: types that NumPy lacks are converted to float32, exactly."""
    kind = str(getattr(value, "dtype", ""))
    if not isinstance(value, np.ndarray) and ("bfloat16" in kind or "float8" in kind):  # NumPy cannot read their DLPack
        value = value.float() if hasattr(value, "float") else np.asarray(value)
    array = as_array(name, value)
    known = np.issubdtype(array.dtype, np.floating) or not is_floating(array.dtype)
    return array if known else array.astype(np.float32)


def plain(array: Array) -> Array:
    """`array` itself, or a plain ndarray for a subclass such as np.matrix, whose operators have other meanings."""
    return array if type(array) is np.ndarray else np.asarray(array)


def check_unmasked(name: str, array: Array) -> None:
    """Raise TypeError for a masked array."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be ignored; expected a NumPy array, such as {name}.filled(0)"
        )


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a real floating-point type of NumPy or ml_dtypes."""
    return np.issubdtype(dtype, np.floating) or "float" in dtype.name


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of a layer: float32 or float64, in native byte order."""
    try:
        found: np.dtype[Any] = np.dtype(object if dtype is None else dtype)  # NumPy reads None as float64
    except TypeError:
        raise TypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}") from None
    if not is_layer_dtype(found):
        raise TypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return found


def is_layer_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether layers work in `dtype`: float32 or float64, in native byte order."""
    return dtype in (np.dtype(np.float32), np.dtype(np.float64))


def check_dtype(name: str, array: Array, dtype: np.dtype[Any]) -> None:
    """Raise TypeError unless `array` has exactly `dtype`: nothing is cast."""
    if array.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {array.dtype.str if not array.dtype.isnative else array.dtype}, "
            f"expected {dtype} (nothing is cast; use {name}.astype({str(dtype)!r}))"
        )


def check_shape(name: str, array: Any, shape: Sequence[int | str]) -> None:
    """Raise ValueError unless `array.shape` is `shape`; a string in `shape` stands for any size."""
    if array.shape == shape:
        return
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} has shape {array.shape}, expected ({expected})")


def float_array(name: str, value: Any, dtype: np.dtype[Any], shape: Sequence[int | str]) -> Array:
    """`value` as an array of this dtype and shape, in its own memory order."""
    array = as_array(name, value)
    check_dtype(name, array, dtype)
    check_shape(name, array, shape)
    return array


@with_room
def bool_array(name: str, value: Any, shape: Sequence[int | str]) -> Array:
    """A contiguous copy of `value`, a bool array of this shape: the tape keeps it, so the caller may change `value`."""
    array = as_array(name, value)
    if array.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {array.dtype}, expected bool")
    check_shape(name, array, shape)
    return np.array(array, order="C")


def sequence_lengths(lengths: Any, steps: int, batch: int, batched: bool) -> Array | None:
    """A copy of `lengths` (B,), integers from 0 to T in any order, as int64; one integer without a batch."""
    if lengths is None:
        return None
    try:
        plain = isinstance(lengths, int | np.integer | list | tuple)
        array = np.asarray(lengths) if plain else as_array("lengths", lengths)
    except ValueError:
        raise ValueError(f"lengths must be a list of {batch} integers, got {lengths!r}") from None
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"lengths must be integers, got dtype {array.dtype}")
    check_shape("lengths", array, (batch,) if batched else ())
    array = np.atleast_1d(array)
    wrong = np.flatnonzero((array < 0) | (array > steps))
    if wrong.size:
        where = f"lengths[{wrong[0]}]" if batched else "lengths"
        raise ValueError(f"{where} is {array[wrong[0]]}, expected 0 to T = {steps}")
    return np.array(array, dtype=np.int64)


def valid_steps(x: Array, lengths: Any, *, batch_first: bool = False) -> Array:
    """Bool mask of the steps of `x` that are not padding: (T, B) for x (T, B, F), in its layout; (T,) unbatched."""
    axes = x.shape if x.dtype.kind in "iu" else x.shape[:-1]
    if len(axes) not in (1, 2):
        raise ValueError(f"x has shape {x.shape}, expected (T, B, F), or (T, F) unbatched, where lengths are given")
    batched = len(axes) == 2
    steps, batch = axes[:: -1 if batch_first else 1] if batched else (*axes, 1)
    own = sequence_lengths(lengths, steps, batch, batched)
    assert own is not None
    valid: Array = np.arange(steps)[:, None] < own
    return valid[:, 0] if not batched else valid.T if batch_first else valid


def contiguous(array: Array) -> Array:
    """`array` itself if it is in C order and aligned, else a copy."""
    if type(array) is np.ndarray and array.flags.c_contiguous and array.flags.aligned:
        return array
    return _require(array, requirements=["C", "A"])


def features_together(array: Array) -> Array:
    """`array` itself if it is aligned, its last axis is contiguous and its strides are whole elements, else a copy."""
    item = array.itemsize
    together = array.strides[-1] == item or array.shape[-1] == 1
    if together and array.flags.aligned and not any(stride % item for stride in array.strides):
        return array
    return contiguous(array)


@with_room
def native_floats(array: Array) -> Array:
    """`array` itself if the kernels can use it, else a copy, in float64 unless it is float32."""
    dtype = np.float32 if array.dtype.itemsize == 4 else np.float64
    return np.require(array, dtype, ["C", "A"])


def is_integer(value: Any) -> bool:
    """Whether `value` is an int or a NumPy integer, but not a bool or a timedelta, which NumPy counts as an integer."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def size(name: str, value: Any, *, least: int = 1, most: int = LARGEST_SIZE) -> int:
    """`value` as an int from `least` to `most`, by default the largest size of an array's axis."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {_shown(value)}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {_shown(value)}")
    return int(value)


def number(name: str, value: Any, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> float:
    """`value` as a float in [low, high]; `open_low` and `open_high` exclude the ends."""
    if type(value) is float:
        found = value
    elif is_integer(value):
        found = float(value) if abs(int(value)) <= _LARGEST_FLOAT else math.nan
    elif isinstance(value, float | np.floating):
        found = float(value)
    else:
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= found <= high or (open_low and found == low) or (open_high and found == high):
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be in {interval}, got {_shown(value)}")
    return found


def _shown(value: Any) -> str:
    """A number as text; for an integer of hundreds of digits, its size."""
    long = is_integer(value) and int(value).bit_length() > 128
    return f"an integer of {int(value).bit_length()} bits" if long else str(value)


def check_shapes(what: str, shapes: Mapping[str, Sequence[int]], itemsize: int) -> None:
    """Raise unless an array of each shape can be addressed."""
    for name, shape in shapes.items():
        if math.prod(shape) * itemsize > sys.maxsize:
            raise ValueError(f"{what} is larger than memory can be: {name} would have shape {tuple(shape)}")


def file_path(name: str, value: Any) -> str | bytes:
    """`value` as the name of a file; an int is refused, because `open` would use it as a file descriptor."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name} must be a str or os.PathLike, got {value!r}")
    return os.fspath(value)


def generator(name: str, seed: Any) -> np.random.Generator:
    """The generator for `seed`: anything that ``numpy.random.default_rng`` accepts, except a bool."""
    try:
        if isinstance(seed, bool | np.bool_):
            raise TypeError
        if isinstance(seed, np.random.Generator | np.random.BitGenerator | np.random.RandomState):
            return np.random.default_rng(seed)
        return np.random.Generator(np.random.PCG64(seed))  # by name, because NumPy may change its default
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be None, an int of at least 0 or a Generator, got {seed!r}") from None


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """`value` if it is one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; anything else, such as a misplaced number, is a TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_timesteps(timesteps: Iterable[str], known: tuple[str, ...] = TIMESTEPS) -> set[str]:
    """`timesteps` as a set; raises for names that are not in `known`."""
    try:
        asked = {timesteps} if isinstance(timesteps, str) else set(timesteps)
    except (TypeError, NotImplementedError):  # a memoryview of several axes raises the latter
        raise TypeError(f"timesteps must be a tuple of {', '.join(map(repr, known))}, got {timesteps!r}") from None
    unknown = sorted(asked - set(known), key=str)
    if unknown:
        raise ValueError(f"timesteps has {unknown[0]!r}, expected some of {', '.join(map(repr, known))}")
    return asked
