"""Remedies, measured on copies of the model, and the best of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from ..layers.layer import Layer
from .examination import DEEP, Examination, examine
from .plans import Plan

Score = Callable[[Examination], tuple[float, ...] | None]
"""Smaller is better. The first number is 0 for a cure, the second says how bad it is, the third breaks ties."""


class Remedies:
    """Applies plans to copies of a model and examines those; each plan once.

    Parameters
    ----------
    before : Examination
        Of the model itself.
    x, d_output, state, lengths
        As it was examined with.
    max_steps : int
        The longest dependency that is wanted.
    """

    def __init__(
        self, before: Examination, x: Any, d_output: Any, state: Any, lengths: Any, max_steps: int | None
    ) -> None:
        self.before, self.x, self.state = before, x, state
        self.steps = before.flow.steps
        self.max_steps = self.steps if max_steps is None else max_steps
        self._d_output, self._lengths = d_output, lengths
        self._found: dict[str, Examination | None] = {}

    @property
    def wanted(self) -> int:
        """The steps that the model should remember: `max_steps`, or those of the longest sequence if it has fewer."""
        return min(self.max_steps, self.steps)

    def best(self, groups: Iterable[Iterable[Plan]], score: Score) -> tuple[Plan, Examination] | None:
        """The plan with the smallest score, of those whose first two numbers beat the model's; None if there is none.

        A group of plans is tried only if none before it is a cure.
        """
        found, least = None, score(self.before)
        if least is None:
            return None
        worst = least[:2]
        for plans in groups:
            for plan in plans:
                after = self.after(plan)
                own = None if after is None else score(after)
                if after is not None and own is not None and own < least and own[:2] < worst:
                    found, least = (plan, after), own
            if found is not None and least[0] == 0:
                break
        return found

    def after(self, plan: Plan) -> Examination | None:
        """The model after a change; None if it cannot be made, or harms the model in another way."""
        if plan.text not in self._found:
            self._found[plan.text] = self._examined(plan)
        return self._found[plan.text]

    def _examined(self, plan: Plan) -> Examination | None:
        try:
            layer: Layer = plan.change(copy.deepcopy(self.before.layer))
        except ValueError:  # the plan does not fit this model
            return None
        x = self.x if plan.divisor == 1 else self.x / self.x.dtype.type(plan.divisor)
        after = examine(layer, x, self._d_output, self.state, self._lengths)
        if len(after.parts) > len(self.before.parts):
            after = after.as_one(self.before.parts[0].place)
        return None if _harms(self.before, after) else after


def _harms(before: Examination, after: Examination) -> bool:
    """Whether a change leaves a model that is not finite, explodes in time, or is worse over depth."""
    if after.flow.fault is not None:
        return True
    if any(abs(now) >= DEEP and abs(now) > abs(then) for now, then in zip(after.depths, before.depths, strict=True)):
        return True
    exploded, explodes = (
        [any(course.explodes for course in part.courses) for part in found.parts] for found in (before, after)
    )
    return any(now and not then for now, then in zip(explodes, exploded, strict=True))
