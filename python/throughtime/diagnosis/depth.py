"""Rule about depth: the gradient shrinks or grows from the output of a stack to its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .._arguments import Array
from ..recurrent import Recurrent
from .examination import DEEP, Examination, factor
from .finding import Finding, Remedy, severity
from .plans import Plan, recipes, residual, residual_layers
from .remedies import Remedies

SEVERE_DEEP = 6.0
_WEIGHTS = ("kaiming", "xavier", "orthogonal")

Read = Callable[[Examination], Array]


def depth(examination: Examination, remedies: Remedies) -> Iterator[Finding]:
    """Between the layers of a stack, and between those inside one recurrent layer."""
    if len(examination.log10_boundaries) > 2:
        yield from _judged(examination, remedies, "stack", boundaries, _stack_plans(remedies))
    for place, part in enumerate(examination.parts):
        if isinstance(part.layer, Recurrent) and part.layer.num_layers > 1:
            plans = [recipes(_WEIGHTS, remedies.max_steps)]
            if remedies.state is None:
                plans.insert(0, residual_layers((None,), remedies.max_steps))

            def levels(found: Examination, place: int = place) -> Array:
                return found.parts[place].log10_levels

            yield from _judged(examination, remedies, part.place, levels, plans)


def boundaries(found: Examination) -> Array:
    """The norms at the boundaries between the layers of a stack."""
    return found.log10_boundaries


def depth_remedy(remedies: Remedies, read: Read, plans: list[list[Plan]]) -> Remedy | None:
    """The remedy that brings the factor over depth nearest to 1."""

    def score(found: Examination) -> tuple[float, ...]:
        norms = read(found)
        if not np.isfinite(norms[[0, -1]]).all():
            return (2.0,)
        change = abs(factor(norms))
        return float(change >= DEEP), round(change, 1)

    best = remedies.best(plans, score)
    if best is None:
        return None
    change = factor(read(best[1]))
    return Remedy(best[0].text, {"log10_factor": change}, f"10^{change:z.1f} over depth")


def _stack_plans(remedies: Remedies) -> list[list[Plan]]:
    """Residual additions and other weights of a stack."""
    steps = remedies.max_steps
    if remedies.state is not None:
        return [recipes(_WEIGHTS, steps)]
    return [[*residual((None,), steps), *recipes(_WEIGHTS, steps)], residual(_WEIGHTS, steps)]


def _judged(
    examination: Examination, remedies: Remedies, place: str, read: Read, plans: list[list[Plan]]
) -> Iterator[Finding]:
    norms = read(examination)
    change, layers = factor(norms), len(norms) - 1
    if abs(change) < DEEP:
        return
    disease = f"{'exploding' if change > 0 else 'vanishing'} over depth"
    each = 10 ** (change / layers)
    text = f"{disease}: {layers} layers multiply the gradient by 10^{change:.1f}, {each:.3g} each"
    figures = {"log10_factor": change, "layers": float(layers), "each": each}
    remedy = depth_remedy(remedies, read, plans)
    yield Finding(disease, place, severity(abs(change) >= SEVERE_DEEP), figures, text, remedy)
