"""A flow whose sequences all end together, so that one timestep is one lag of all of them."""

from __future__ import annotations

import numpy as np

from .flow_result import GradientFlow


def by_lag(flow: GradientFlow) -> GradientFlow:
    """The flow with every sequence moved to the end of the time axis, so that all losses on last steps coincide.

    Otherwise the loss of a short sequence, met late on the way back, looks like growth. The rows of a reverse direction
    begin their way at timestep 0 in every sequence, and stay.
    """
    if flow.lengths is None:
        return flow
    norms = flow.log10_norm_per_sequence[:, : flow.steps]
    if norms.ndim == 3:
        times = np.arange(flow.steps)[:, None] - (flow.steps - flow.lengths)
        moved = np.take_along_axis(norms, np.broadcast_to(times.clip(0), norms.shape), axis=1)
        moved = np.where(times < 0, -np.inf, moved)
        norms = np.where(flow.reverse[:, None, None], norms, moved)
    return GradientFlow(norms, reverse=flow.reverse.tolist(), names=flow.names, title=flow.title)
