"""The number types of a DeviceArray, and conversions from and to host arrays."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from .._arguments import Array

#: NumPy dtypes for storage: 16-bit floats are stored as bits, because NumPy has only one of the two.
HELD_AS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.uint16),
    "float64": np.dtype(np.float64),
    "bool": np.dtype(np.bool_),
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
FLOATS = ("float32", "bfloat16", "float16")  # dtypes of layers


def dtype_name(dtype: Any) -> str:
    """The name of `dtype`, given as a name or as NumPy's, torch's or JAX's.

    Raises
    ------
    TypeError
        If arrays on the device cannot have that type.
    """
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name not in HELD_AS and dtype is not None:  # NumPy reads None as float64
        with suppress(TypeError):
            name = np.dtype(dtype).name
    if name not in HELD_AS:
        raise TypeError(f"dtype must be one of {', '.join(map(repr, HELD_AS))}, got {dtype!r}")
    return name


def float_name(dtype: Any) -> str:
    """The dtype of a layer on the device."""
    name = dtype_name(dtype)
    if name not in FLOATS:
        raise TypeError(f"dtype must be one of {', '.join(map(repr, FLOATS))} on CUDA, got {name!r}")
    return name


def held(array: Array, dtype: str) -> Array:
    """A host array in the storage format of the device, without gaps; values are rounded if `dtype` is narrower."""
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        array = shown(array.view(np.uint16), "bfloat16")
    if dtype == "bfloat16":
        return _rounded(array.astype(np.float32, order="C"))
    if dtype == "float16":
        return array.astype(np.float16, order="C").view(np.uint16)
    return array.astype(HELD_AS[dtype], order="C")


def shown(array: Array, dtype: str) -> Array:
    """The inverse of `held`; bfloat16 becomes float32, exactly."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.view(np.float16) if dtype == "float16" else array


def _rounded(array: Array) -> Array:
    """Round to the nearest bfloat16, ties to even."""
    bits = array.view(np.uint32)
    nearest = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    quiet = np.uint16(0x7FFF)  # truncation may remove all fraction bits of a NaN
    rounded: Array = np.where(np.isnan(array), quiet, nearest)
    return rounded
