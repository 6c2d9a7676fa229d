"""Errors in units in the last place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .functions import Exact
from .inputs import Array

_FLUSHED = 64.0  # below so many times the smallest normal number, x Phi(x) may contain a Phi(x) that is subnormal


class UlpError(NamedTuple):
    """Errors over some points: the largest, where it is, and the mean."""

    largest: float
    at: float
    mean: float
    points: int


def ulp_errors(x: Array, got: Array, exact: Exact) -> UlpError:
    """Compare `got`, a function's values at x, with the exact ones, in units of the exact value in `got`'s dtype.

    Exact values near the smallest normal number are left out, because kernels flush subnormals to zero, those of
    intermediate results too. There a value counts only if it is not small either.
    """
    size, least = np.abs(exact.high), _FLUSHED * float(np.finfo(got.dtype).tiny)
    counted = (size >= least) | ~(np.abs(got) < 2 * least)
    if not counted.any():
        return UlpError(0.0, 0.0, 0.0, 0)
    unit = np.spacing(size[counted].astype(got.dtype)).astype(np.float64)
    with np.errstate(over="ignore"):  # a wrong value may be off by more units than there are numbers
        error = np.abs((got[counted].astype(np.float64) - exact.high[counted]) - exact.low[counted]) / unit
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    return UlpError(float(error[worst]), float(x[counted][worst]), float(error.mean()), len(error))
