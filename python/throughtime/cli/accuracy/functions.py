"""The elementwise functions, as the public interface reaches them, and their exact values."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import throughtime as tt

from .inputs import Array

DIGITS = 50


class Function(NamedTuple):
    """How to compute a function with the library; its exact value by mpmath (`m`); the bound on its error in ulp."""

    run: Callable[[Array], Array]
    exact: Callable[[Any, Any], Any]
    bound: float


def _softmax(x: Array) -> Array:
    """The probability of the first of two classes with logits x and 0: its gradient if the other one is the target.

    One call per number, because the gradient of a mean over many would be smaller and might be flushed to zero.
    """
    target = np.array(1)
    return np.array([tt.cross_entropy(np.array([logit, 0], x.dtype), target)[1][0] for logit in x])


# Sigmoid, tanh: about five roundings, of half a unit each. gelu: 7 for the normal distribution function and one for the
# product with x. softmax: 1 for exp, then sum, quotient and product, each at most a unit relatively twice as large.
FUNCTIONS = {
    "sigmoid": Function(lambda x: tt.Sigmoid()(x), lambda m, v: 1 / (1 + m.exp(-v)), 3),
    "tanh": Function(lambda x: tt.Tanh()(x), lambda m, v: m.tanh(v), 3),
    "gelu": Function(lambda x: tt.GELU()(x), lambda m, v: v * m.ncdf(v), 8),
    "relu": Function(lambda x: tt.ReLU()(x), lambda m, v: max(v, m.mpf(0)), 0),
    "softmax": Function(_softmax, lambda m, v: 1 / (1 + m.exp(-v)), 6),
}


def mpmath_version() -> str | None:
    """The version of mpmath, which computes the exact values; None if it is not installed."""
    if importlib.util.find_spec("mpmath") is None:
        return None
    return str(importlib.import_module("mpmath").__version__)


class Exact(NamedTuple):
    """Exact values as unevaluated sums of two float64 numbers."""

    high: Array
    low: Array


def exact_values(function: Function, x: Array) -> Exact:
    """The function at x to 50 digits, by mpmath, rounded to two float64 numbers."""
    m = importlib.import_module("mpmath")
    with m.workdps(DIGITS):
        values = [function.exact(m, m.mpf(v)) for v in x.tolist()]
        high = [float(v) for v in values]
        low = [float(v - h) for v, h in zip(values, high, strict=True)]
    return Exact(np.array(high), np.array(low))
