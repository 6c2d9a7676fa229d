"""How the gradient of a recurrent layer goes back in time: the numbers behind the rules about time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..analysis.flow_result import GradientFlow

FRACTION = 1e-6  # of the gradient at the loss: float32 loses smaller contributions to a sum (its eps is 1.2e-7)
GROWTH = 1.5  # log10 of the growth over the farther half of the way: tenfold per half is what noise may do
NEVER = -np.inf  # log10 of zero


class Course(NamedTuple):
    """The way back of one layer and direction.

    Attributes
    ----------
    name : str
        Of the row; empty for a layer with one row.
    gamma, horizon : float
        As of `GradientFlow`: the mean factor per step back; the steps until the norm is below `FRACTION` of its start.
    growth : float
        log10 of the largest norm of the farther half of the way over the largest of the nearer half and of the loss.
    total : float
        log10 of the largest norm over the first.
    zero_lag : int or None
        Steps back from which on the gradient is exactly zero; None if it never is.
    steps : int
        Of the longest sequence.
    """

    name: str
    gamma: float
    horizon: float
    growth: float
    total: float
    zero_lag: int | None
    steps: int

    @property
    def explodes(self) -> bool:
        """Whether the gradient grows without end."""
        return self.growth >= GROWTH

    def remembers(self, wanted: int) -> int:
        """Steps, of those that are wanted, from which something can be learnt."""
        return int(min(self.horizon, wanted))

    @property
    def distance(self) -> float:
        """How far gamma is from 1, in log10; 0 for a single step, which has no gamma."""
        if np.isnan(self.gamma):
            return 0.0 if self.zero_lag is None else np.inf
        return abs(np.log10(self.gamma)) if self.gamma > 0 else np.inf


def courses(flow: GradientFlow, log10_loss: float) -> list[Course]:
    """The ways back in a recurrent layer; none if its gradient is not finite."""
    found = []
    gammas, horizons = flow.gamma, flow.horizon(FRACTION)
    for row, name in enumerate(flow.names):
        way = flow._way(row)
        if np.isnan(way).any() or (way == np.inf).any():
            return []
        carrying = np.flatnonzero(way != NEVER)
        end = int(carrying[-1]) + 1 if carrying.size else 0
        near, far = way[: (end + 1) // 2], way[(end + 1) // 2 : end]
        largest = max(float(near.max(initial=NEVER)), log10_loss)
        found.append(
            Course(
                name if len(flow.names) > 1 else "",
                float(gammas[row]),
                float(horizons[row]) if way.size else 0.0,
                float(far.max(initial=NEVER)) - largest if far.size else NEVER,
                float(way.max() - way[0]) if way.size else 0.0,
                end if end < len(way) or not way.size else None,
                flow.steps,
            )
        )
    return found
