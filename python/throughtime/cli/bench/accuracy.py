"""Compare answers with float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

ROUNDOFF = float(np.finfo(np.float32).eps) / 2
OUTPUTS = ("output", "inference", "sum", "normalised")  # of a forward; all other tensors are gradients


def errors(answers: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """The relative error ||a - b|| / ||b|| of every tensor, NumPy's or torch's.

    If `expected` has only the beginning of a tensor, only that part is compared; the error is infinite if the rest is
    not finite.
    """
    return {name: _error(answer, expected[name]) for name, answer in answers.items()}


def _error(answer: Any, expected: Any) -> float:
    compared = answer[: len(expected)]
    if compared.shape != expected.shape:
        return float("inf")
    if len(answer) > len(expected) and not (hasattr(answer, "isfinite") and answer.isfinite().all()):
        return float("inf")
    difference = compared - expected
    return float((difference**2).sum() ** 0.5 / (expected**2).sum() ** 0.5)


def bound(terms: int, product: float = 0.0) -> float:
    """The relative root mean square error above which an answer is wrong, not just rounded.

    Rounding errors are nearly independent, so a sum of n terms has an error of at most u sqrt(n), u = eps / 2. Each
    step shrinks errors (a new layer's recurrent weights have a spectral radius near 1 / sqrt 3), so they do not
    accumulate over time. `product` is the relative error of one product, or the rounding of 16-bit numbers that a step
    stores, which later steps shrink. The bound is ten times the sum of both, for the neglected constants.
    """
    return float(10 * (product + np.sqrt(terms) * ROUNDOFF))


def verdict(found: Mapping[str, float], allowed: float) -> str | None:
    """Why these errors make an answer wrong; None if they do not, or if there is no answer."""
    if not found:
        return None
    name, error = max(found.items(), key=lambda item: (np.isnan(item[1]), item[1]))
    if error <= allowed:
        return None
    what = f"the {name}" if name in OUTPUTS else f"the gradient of {name}"
    return f"{what} is off by {error:.1e} (relative, root mean square), allowed are {allowed:.1e}"
