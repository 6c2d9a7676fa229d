"""Answers on the device against float64, which come before times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..contenders import OURS
from ..problems import GATES
from . import layers, rows
from .device import Device
from .numbers import Numbers, torch
from .problems import AddNorm, Problem

STEPS, ROWS = 64, 4096  # at the beginning, that are compared; the run they are of is whole


def count(problem: Problem) -> int:
    """Steps or rows that are compared."""
    return min(ROWS, problem.N) if isinstance(problem, AddNorm) else min(STEPS, problem.T)


def reference(problem: Problem, numbers: Numbers, device: Device) -> dict[str, Any]:
    """What they are compared with, from the same rounded inputs."""
    if isinstance(problem, AddNorm):
        return rows.reference(problem, numbers, device, count(problem))
    return layers.reference(problem, numbers, device, count(problem))


def errors(answers: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """The relative error ||a - b|| / ||b|| of every tensor; infinite where anything, also beyond what is compared, is
    not finite."""
    return {name: _error(answer, expected[name]) for name, answer in answers.items()}


def _error(answer: Any, expected: Any) -> float:
    compared = answer[: len(expected)]
    if compared.shape != expected.shape or not torch.isfinite(answer).all():
        return float("inf")
    return float(torch.linalg.vector_norm(compared.double() - expected) / torch.linalg.vector_norm(expected))


def bound(problem: Problem, numbers: Numbers, name: str) -> float:
    """The relative error, root mean square, beyond which an answer of this contender is wrong rather than rounded.

    As for the CPU (`..accuracy.bound`): ten times u sqrt(n) of float32 for the longest sums, and the relative error of
    a product. Of 16-bit numbers that is the rounding of what a step keeps and hands on, which the next steps shrink.
    """
    if isinstance(problem, AddNorm):
        terms = problem.F + count(problem)
    else:
        terms = problem.H + (1 + GATES[problem.cell]) * problem.H + count(problem) * problem.B
    single = np.sqrt(terms) * np.finfo(np.float32).eps / 2
    return float(10 * (numbers.product_error(name == OURS) + single))


def verdict(found: Mapping[str, float], allowed: float) -> str | None:
    """Why these errors make an answer wrong; None where they do not, or where there is no answer."""
    if not found:
        return None
    name, error = max(found.items(), key=lambda item: (np.isnan(item[1]), item[1]))
    if error <= allowed:
        return None
    return f"{name} is off by {error:.1e} (relative, root mean square), allowed are {allowed:.1e}"
