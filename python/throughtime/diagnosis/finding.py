"""The result of `diagnose`: findings, each with its figures, and a remedy that was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from .._text import counted
from ..analysis.flow_result import GradientFlow

__all__ = ["Diagnosis", "Finding", "Remedy"]

Severity = Literal["mild", "severe"]


def severity(severe: bool) -> Severity:
    """The word for it."""
    return "severe" if severe else "mild"


def gamma_text(gamma: float) -> str:
    """Gamma with three decimals, unless it is far from 1."""
    return f"{gamma:.3f}" if 0.01 < gamma < 100 else f"{gamma:.2g}"


@dataclass(frozen=True)
class Remedy:
    """A change that measures better.

    Attributes
    ----------
    text : str
        What to do, as code where one call does it.
    figures : dict of str to float
        The figures of the disease after the change, on the same data.
    result : str
        The figures in words.
    """

    text: str
    figures: dict[str, float]
    result: str

    def __str__(self) -> str:
        return f"Try {self.text}: {self.result}."


@dataclass(frozen=True)
class Finding:
    """One disease of one layer.

    Attributes
    ----------
    disease : str
        ``"not finite"``, ``"zero gradient"``, ``"vanishing"``, ``"exploding"``, ``"vanishing over depth"``,
        ``"exploding over depth"``, ``"dead units"`` or ``"saturated"``.
    layer : str
        The layer's place in the model, such as ``"0.sublayer"``; of a layer by itself the name of its class.
    severity : {"mild", "severe"}
    figures : dict of str to float
        The measured numbers by name.
    text : str
        The disease in words.
    remedy : Remedy or None
        The change that measured best; None if none measured better.
    """

    disease: str
    layer: str
    severity: Severity
    figures: dict[str, float]
    text: str
    remedy: Remedy | None = None

    def __str__(self) -> str:
        remedy = "" if self.remedy is None else f" {self.remedy}"
        return f"{self.layer}, {self.severity}: {self.text}.{remedy}"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The findings on a model; as a string, all of them in words.

    Attributes
    ----------
    findings : list of Finding
        The severe ones first, then in the order of the layers; empty for a healthy model.
    figures : dict of str to dict of str to float
        By layer, the numbers that were measured, of healthy layers too.
    flow : GradientFlow
        The gradient flow from which they come, with `summary` and `plot`.
    title : str
        The model and the data in words.
    """

    findings: list[Finding]
    figures: dict[str, dict[str, float]]
    flow: GradientFlow = field(repr=False)
    title: str

    def __str__(self) -> str:
        if self.findings:
            lines = _grouped(self.findings)
            count = counted(len(self.findings), "finding")
        else:
            lines, count = [f"{place}: {_in_words(own)}" for place, own in self.figures.items() if own], "healthy"
        return "\n".join([f"{self.title}: {count}", *(f"  {line}" for line in lines)])


def _grouped(findings: list[Finding]) -> list[str]:
    """A line for each finding; those of one disease with one remedy in several layers share the line of the first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.disease, finding.remedy.text if finding.remedy else ""), []).append(finding)
    return [
        str(first) + (f" Likewise in {', '.join(other.layer for other in others)}." if others else "")
        for first, *others in groups.values()
    ]


def _in_words(figures: dict[str, float]) -> str:
    words = []
    if "horizon" in figures:
        steps, gamma = figures["steps"], figures["gamma"]
        rate = "" if math.isnan(gamma) else f"gamma {gamma_text(gamma)}, "  # one step has none
        words.append(f"{rate}remembers {min(figures['horizon'], steps):g} of {steps:g} steps")
    if "log10_depth" in figures:
        words.append(f"the gradient changes by 10^{figures['log10_depth']:z.1f} over depth")
    if "dead" in figures:
        words.append(f"{figures['dead']:.0%} of the ReLUs dead")
    if "saturated" in figures:
        words.append(f"{figures['saturated']:.0%} of the values saturated")
    return ", ".join(words)
