"""Answers against float64, which come before times."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .contenders import Ours
from .problems import GATES, Array, Task

# Relative error of one product, beside that of a float32 sum.
PRODUCT = {"highest": 0.0, "high": 2.0**-16, "medium": 2.0**-8}


def reference(task: Task) -> dict[str, Array]:
    """The answers of our own layer in float64, which the tests hold to its specification."""
    ours = Ours(task, dtype="float64")
    ours.step()
    return ours.answers()


def errors(answers: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """The relative error ||a - b|| / ||b|| of every tensor."""
    return {name: _error(answer, expected[name]) for name, answer in answers.items()}


def _error(answer: Array, expected: Array) -> float:
    if answer.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))


def bound(task: Task, precision: str = "highest") -> float:
    """The relative error, root mean square, beyond which an answer is wrong rather than rounded.

    The longest sums are over the gates' inputs and, for the weight gradients, over all timesteps and sequences.
    """
    T, B, I, H = task.problem[:4]  # noqa: E741
    return rounding(I + (1 + GATES[task.cell]) * H + T * B, precision)


def rounding(terms: int, precision: str = "highest") -> float:
    """The relative error, root mean square, that sums of so many terms may have.

    Roundings are as good as independent, so that those of a sum of n terms leave u sqrt(n), u = eps / 2, at most. What
    a step receives it hands on smaller (a new layer's recurrent weights have a spectral radius near 1 / sqrt 3), so
    that errors do not pile up over time. Ten times that, for the constants left out.
    """
    return float(10 * (PRODUCT[precision] + np.sqrt(terms) * np.finfo(np.float32).eps / 2))


def verdict(found: Mapping[str, float], allowed: float) -> str | None:
    """Why these errors make an answer wrong; None where they do not."""
    name, error = max(found.items(), key=lambda item: (np.isnan(item[1]), item[1]))
    if error <= allowed:
        return None
    what = "the output" if name == "output" else f"the gradient of {name}"
    return f"{what} is off by {error:.1e} (relative, root mean square), allowed are {allowed:.1e}"
