"""Rules about time: the gradient vanishes or explodes."""

from __future__ import annotations

from collections.abc import Iterator

from ..recurrent import RNN
from .course import Course
from .examination import Examination, Part
from .finding import Finding, Remedy, gamma_text, severity
from .plans import Plan, as_lstm, recipes, residual, residual_layers
from .remedies import Remedies

SEVERE_SHARE = 0.5  # of the steps that are wanted, from which nothing is learnt
SEVERE_GROWTH = 6.0  # log10


def vanishing(examination: Examination, remedies: Remedies) -> Iterator[Finding]:
    """The gradient falls below 1e-6 of that at the loss within the steps that are wanted."""
    wanted = remedies.wanted
    for place, part in enumerate(examination.parts):
        if not part.courses:
            continue
        worst, zero = min(part.courses, key=lambda course: course.horizon), worst_zero(part)
        kept = worst.remembers(wanted)
        if not worst.horizon < wanted or (zero is not None and (zero.zero_lag or 0) <= worst.horizon):
            continue  # a gradient that is zero without having vanished before has a rule of its own
        severe = severity(wanted - kept > SEVERE_SHARE * wanted)
        figures = {"gamma": worst.gamma, "horizon": worst.horizon, "steps": float(wanted)}
        text = (
            f"{row_prefix(worst)}contracting, gamma {gamma_text(worst.gamma)}: remembers {kept} steps of {wanted}; "
            f"nothing is learnt from the other {wanted - kept}"
        )
        plans = memory_plans(remedies, part)
        yield Finding("vanishing", part.place, severe, figures, text, memory_remedy(remedies, place, plans))


def exploding(examination: Examination, remedies: Remedies) -> Iterator[Finding]:
    """The gradient grows on the way back, also in the farther half of it."""
    for place, part in enumerate(examination.parts):
        grown = [course for course in part.courses if course.explodes]
        if not grown:
            continue
        worst = max(grown, key=lambda course: course.total)
        severe = severity(worst.total >= SEVERE_GROWTH)
        figures = {"gamma": worst.gamma, "log10_growth": worst.total, "steps": float(worst.steps)}
        text = (
            f"{row_prefix(worst)}exploding, gamma {gamma_text(worst.gamma)}: the gradient grows by "
            f"10^{worst.total:.1f} over {worst.steps} steps; clip it with tt.clip_grad_norm or backward(clip=...)"
        )

        def score(found: Examination, place: int = place) -> tuple[float, ...] | None:
            own = found.parts[place].courses
            if not own:
                return None
            return float(any(course.explodes for course in own)), max(course.distance for course in own)

        best = remedies.best([recipes(("good", "orthogonal", "xavier"), remedies.max_steps)], score)
        remedy = None if best is None else _remedy(*best, place, remedies.wanted)
        yield Finding("exploding", part.place, severe, figures, text, remedy)


def worst_zero(part: Part) -> Course | None:
    """The row whose gradient is exactly zero from the fewest steps back on; None if that of no row is."""
    zero = [course for course in part.courses if course.zero_lag is not None]
    return min(zero, key=lambda course: course.zero_lag or 0, default=None)


def row_prefix(course: Course) -> str:
    """The name of a row before a text about it, if there are several."""
    return f"{course.name}: " if course.name else ""


def memory_plans(remedies: Remedies, part: Part, *more: str) -> list[list[Plan]]:
    """Weights for a longer memory; then residual additions with them; then another cell."""
    steps = remedies.max_steps
    simple = isinstance(part.layer, RNN)
    names = ("good", "orthogonal", "identity", *more) if simple else ("chrono", "good")
    groups = [recipes(names, steps)]
    if remedies.state is None:
        groups.append(residual(names, steps))
        model = remedies.before.layer
        groups.append(residual_layers(names, steps))
        if isinstance(model, RNN):
            groups.append([as_lstm(model, steps)])
    return groups


def memory_remedy(remedies: Remedies, place: int, groups: list[list[Plan]]) -> Remedy | None:
    """The remedy with the longest memory of a layer; of those, the first whose gamma is nearest to 1.

    None if no memory is longer, or only with a gamma that is farther from 1.
    """
    wanted = remedies.wanted
    farthest = max(course.distance for course in remedies.before.parts[place].courses)

    def score(found: Examination) -> tuple[float, ...] | None:
        own = found.parts[place].courses
        if not own or max(course.distance for course in own) > farthest:
            return None
        kept = min(course.remembers(wanted) for course in own)
        zero = any(course.zero_lag is not None for course in own)
        return float(kept < wanted or zero), -kept, round(max(course.distance for course in own), 2)

    best = remedies.best(groups, score)
    return None if best is None else _remedy(*best, place, wanted)


def _remedy(plan: Plan, after: Examination, place: int, wanted: int) -> Remedy:
    own = after.parts[place].courses
    worst = min(own, key=lambda course: (course.remembers(wanted), -course.distance))
    figures = {"gamma": worst.gamma, "horizon": worst.horizon}
    return Remedy(
        plan.text, figures, f"gamma {gamma_text(worst.gamma)}, remembers {worst.remembers(wanted)} steps of {wanted}"
    )
