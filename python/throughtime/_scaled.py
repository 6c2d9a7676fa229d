"""Gradients beyond the range of floats: arrays with a power-of-two exponent for every row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._arguments import Array

ZERO = np.iinfo(np.int32).min  # the exponent of a zero row, as in the kernels
LOG10_2 = np.log10(2.0)


class Scaled(NamedTuple):
    """``values (..., F)`` times 2 to the ``exponent (...)``; a row with exponent ZERO is zero, whatever its values."""

    values: Array
    exponent: Array

    @property
    def dense(self) -> Array:
        """The values, with zeros in zero rows."""
        return np.where((self.exponent != ZERO)[..., None], self.values, self.values.dtype.type(0))

    def plain(self) -> Array:
        """An ordinary array, with zeros in rows below its range."""
        return _times(self.dense, self.exponent)


def scaled(values: Array, exponent: Any = 0) -> Scaled:
    """The same rows, each rescaled to near 1; `values` unchanged if all are within 2^30 of it."""
    squares = np.einsum("...f,...f->...", values, values)  # takes a tenth of the time of max(abs(values))
    zero = squares == 0
    near = zero | ((squares > 2.0**-60) & (squares < 2.0**60))
    if near.all() and not values[zero].any():
        return Scaled(values, np.where(zero, ZERO, exponent).astype(np.int32))
    largest = np.maximum(values.max(axis=-1), -values.min(axis=-1))
    own = np.frexp(np.where(np.isfinite(largest), largest, 1))[1] - 1
    own = np.maximum(own, np.finfo(values.dtype).minexp)  # subnormal rows stay below 1, so that 2^-own is finite
    some = (largest != 0) & (np.asarray(exponent) != ZERO)
    total = np.where(some, np.asarray(exponent, np.int64) + own, ZERO).astype(np.int32)
    return Scaled(_times(values, -own), total)


def has_nan(a: Scaled) -> Array:
    """Mask of the rows (...) that contain a NaN."""
    found: Array = np.isnan(np.einsum("...f->...", a.values)) & (a.exponent != ZERO)
    return found


def add(a: Scaled, b: Scaled) -> Scaled:
    """The sum of two."""
    exponent = np.maximum(a.exponent, b.exponent).astype(np.int64)
    total = _times(a.dense, a.exponent - exponent)
    total += _times(b.dense, b.exponent - exponent)
    return scaled(total, exponent)


def times(a: Scaled, factor: float) -> Scaled:
    """Each row times a number."""
    return a if factor == 1 else scaled(a.values * a.values.dtype.type(factor), a.exponent)


def log10_norm(a: Scaled) -> Array:
    """log10 of each row's norm, float64; -inf for zero."""
    values = a.dense
    squares = np.einsum("...f,...f->...", values, values, dtype=np.float64)
    with np.errstate(divide="ignore"):
        norm: Array = np.log10(squares) / 2 + a.exponent * LOG10_2
    return norm


def _times(values: Array, exponent: Array) -> Array:
    """Rows times powers of two; zero if the power is below the range."""
    factor = np.ldexp(values.dtype.type(1), np.maximum(exponent, -9999).astype(np.int32))
    product: Array = np.multiply(values, factor[..., None], out=_core.empty(values.shape, values.dtype))
    return product
