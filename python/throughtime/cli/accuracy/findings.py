"""Findings: the error of a function or kernel, of one level, type and distribution of inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from .ulp import UlpError


class FunctionFinding(NamedTuple):
    """Errors of a function in ulp, and their bound."""

    function: str
    type: str
    level: str
    inputs: str
    error: UlpError
    bound: float

    @property
    def excess(self) -> str | None:
        """How the error exceeds its bound; None if it does not."""
        if self.error.largest <= self.bound:
            return None
        return (
            f"{self.function}, {self.type}, {self.level}, {self.inputs}: off by {self.error.largest:.3g} ulp at "
            f"{self.error.at!r}, allowed are {self.bound:g}"
        )


class Error(NamedTuple):
    """Errors of a tensor in units of the roundoff u: ||a - b|| / ||b||, and max |a - b| / max |b|."""

    norm: float
    largest: float


class KernelFinding(NamedTuple):
    """Errors of a kernel by tensor, and the bound on those of norms, if there is one.

    `reference` is "float64", or the level whose float64 results were compared.
    """

    kernel: str
    type: str
    precision: str
    level: str
    inputs: str
    reference: str
    values: dict[str, Error]
    gradients: dict[str, Error]
    bound: float | None

    @property
    def excess(self) -> str | None:
        """How the worst error exceeds its bound, or that it is not finite; None if neither."""
        errors = {**self.values, **{f"gradient of {name}": error for name, error in self.gradients.items()}}
        tensor = worst(errors)
        error = errors[tensor].norm
        which = f"{self.kernel}, {self.type}, {self.precision}, {self.level}, {self.inputs}: {tensor}"
        if not math.isfinite(error):
            return f"{which} is not finite"
        if self.bound is None or error <= self.bound:
            return None
        return f"{which} is off by {error:.3g} u, allowed are {self.bound:.3g}"


def worst(errors: dict[str, Error]) -> str:
    """The tensor of the largest error; NaN counts as the largest."""
    return max(errors, key=lambda name: (math.isnan(errors[name].norm), errors[name].norm))


@dataclass
class Findings:
    """All findings, levels that failed with the reason, and what could not be measured."""

    functions: list[FunctionFinding] = field(default_factory=list)
    kernels: list[KernelFinding] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def excesses(self) -> list[str]:
        """Errors above their bounds."""
        found = [*(finding.excess for finding in self.functions), *(finding.excess for finding in self.kernels)]
        return [excess for excess in found if excess]
