"""Rules about units: ReLUs that never fire, gates and activations at an end of their range."""

from __future__ import annotations

from collections.abc import Iterator

from .examination import Examination, Part
from .finding import Finding, Remedy, severity
from .plans import recipes, residual, smaller_input
from .remedies import Remedies

DEAD = 0.25  # share of units
SEVERE_DEAD = 0.5
SATURATED = 0.5  # share of the values of a gate
SEVERE_SATURATED = 0.9


def dead(examination: Examination, remedies: Remedies) -> Iterator[Finding]:
    """ReLU units that are zero for every input: no gradient passes them, and their weights stay as they are."""
    for place, part in enumerate(examination.parts):
        if worst_dead(part) < DEAD:
            continue
        name, worst = max(part.dead.items(), key=lambda entry: entry[1].share)
        severe = severity(worst.share > SEVERE_DEAD)
        figures = {"share": worst.share, "units": float(worst.units), "rows": float(worst.rows)}
        text = (
            f"{name + ': ' if name else ''}dead units: {round(worst.share * worst.units)} of {worst.units} ReLUs are "
            f"zero for all {worst.rows} inputs"
        )

        def score(found: Examination, place: int = place) -> tuple[float, ...] | None:
            share = worst_dead(found.parts[place])
            return float(share >= DEAD), round(share, 3)

        steps = remedies.max_steps
        plans = [recipes(("kaiming", "orthogonal", "good"), steps)]
        if remedies.state is None:
            plans.append(residual((None,), steps))
        best = remedies.best(plans, score)
        remedy = None
        if best is not None:
            share = worst_dead(best[1].parts[place])
            remedy = Remedy(best[0].text, {"share": share}, f"{share:.0%} of the ReLUs dead")
        yield Finding("dead units", part.place, severe, figures, text, remedy)


def saturated(examination: Examination, remedies: Remedies) -> Iterator[Finding]:
    """Values within 0.01 of an end of the range of a gate or activation, where its slope is nearly zero."""
    for place, part in enumerate(examination.parts):
        worst = worst_saturated(part)
        if worst < SATURATED:
            continue
        name = max(part.saturated, key=lambda name: part.saturated[name])
        severe = severity(worst > SEVERE_SATURATED)
        text = (
            f"saturated: {worst:.0%} of the values of {name or 'the activation'} are within 0.01 of an end of its range"
        )

        def score(found: Examination, place: int = place) -> tuple[float, ...] | None:
            own = found.parts[place]
            distance = max((course.distance for course in own.courses), default=0.0)
            return float(worst_saturated(own) >= SATURATED), round(worst_saturated(own), 2), distance

        steps = remedies.max_steps
        best = remedies.best([smaller_input(remedies.x), recipes(("good", "orthogonal", "xavier"), steps)], score)
        remedy = None
        if best is not None:
            share = worst_saturated(best[1].parts[place])
            remedy = Remedy(best[0].text, {"share": share}, f"{share:.0%} of the values saturated")
        yield Finding("saturated", part.place, severe, {"share": worst, **_shares(part)}, text, remedy)


def worst_dead(part: Part) -> float:
    """The largest share of dead units of a row."""
    return max((own.share for own in part.dead.values()), default=0.0)


def worst_saturated(part: Part) -> float:
    """The largest share of saturated values of a gate or activation."""
    return max(part.saturated.values(), default=0.0)


def _shares(part: Part) -> dict[str, float]:
    return {name: share for name, share in part.saturated.items() if name}
