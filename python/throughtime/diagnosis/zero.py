"""Rule about gradients that are exactly zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._text import counted
from ..layers.embedding import Embedding
from .depth import boundaries, depth_remedy
from .examination import Examination
from .finding import Finding, severity
from .plans import recipes
from .remedies import Remedies
from .through_time import SEVERE_SHARE, memory_plans, memory_remedy, row_prefix, worst_zero


def zero_gradient(examination: Examination, remedies: Remedies) -> Iterator[Finding]:
    """Of the loss; below a layer of a stack; or in a recurrent layer from some step back on."""
    if examination.log10_loss == -np.inf:
        text = "the loss has no gradient: d_output is zero, or there is no sequence"
        yield Finding("zero gradient", "output", "severe", {}, text)
        return
    stop = _stop(examination)
    if stop is not None:
        text = f"no gradient passes layer {stop} of the stack: it is exactly zero below"
        remedy = depth_remedy(remedies, boundaries, [recipes(("kaiming", "orthogonal"), remedies.max_steps)])
        yield Finding("zero gradient", str(stop), "severe", {"layer": float(stop)}, text, remedy)
    for place, part in enumerate(examination.parts):
        worst = worst_zero(part)
        if worst is None or worst.zero_lag is None or (stop is not None and not worst.zero_lag):
            continue
        lag, steps = worst.zero_lag, worst.steps
        back = f"from {counted(lag, 'step')} back on" if lag else "at every step"
        figures = {"lag": float(lag), "steps": float(steps)}
        lost = f"nothing is learnt from {steps - lag} of {steps} steps"
        text = f"{row_prefix(worst)}the gradient is exactly zero {back}; {lost}"
        remedy = memory_remedy(remedies, place, memory_plans(remedies, part, "kaiming"))
        severe = severity(steps - lag > SEVERE_SHARE * steps)
        yield Finding("zero gradient", part.place, severe, figures, text, remedy)


def _stop(examination: Examination) -> int | None:
    """The highest layer of a stack that no gradient passes."""
    zero = np.flatnonzero(examination.log10_boundaries == -np.inf)
    if not zero.size:
        return None
    return int(zero[-1]) + isinstance(examination.parts[0].layer, Embedding)
