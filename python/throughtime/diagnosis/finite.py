"""Rule about NaN and infinity."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..analysis.flow_result import GradientFlow
from .examination import Examination
from .finding import Finding, Remedy
from .plans import recipes
from .remedies import Remedies

_RECIPES = ("good", "orthogonal", "identity", "xavier")


def not_finite(examination: Examination, remedies: Remedies) -> Iterator[Finding]:
    """The forward, or else the gradient, has a NaN or an infinity."""
    flow = examination.flow
    if flow.fault is None:
        yield from _of_gradient(flow)
        return
    step = re.search(r"timestep (\d+)", flow.fault)  # absent if a gate hides the parameter that is not finite
    figures = {"timestep": float(step[1])} if step else {}
    remedy = None
    if not flow.fault.startswith("x is"):
        best = remedies.best([recipes(_RECIPES, remedies.max_steps)], lambda found: (float(bool(found.flow.fault)),))
        remedy = None if best is None else Remedy(best[0].text, {}, "everything is finite")
    yield Finding("not finite", examination.fault_place, "severe", figures, f"not finite: {flow.fault}", remedy)


def _of_gradient(flow: GradientFlow) -> Iterator[Finding]:
    """Its own NaN, which comes from the loss or from an overflow on the way back."""
    norms = flow.log10_norm
    bad = np.flatnonzero((np.isnan(norms) | (norms == np.inf)).any(axis=0))
    if not bad.size:
        return
    step = int(bad[0] if flow.reverse.all() else bad[-1])
    text = f"not finite: the gradient at timestep {step}, though the forward is finite; look at d_output"
    yield Finding("not finite", "output", "severe", {"timestep": float(step)}, text)
