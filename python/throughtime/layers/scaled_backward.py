"""The way back through layers with a power of two beside every row of the gradient, as `gradient_flow` takes it.

A tape may have ``_scaled_backward(layer, d, way)``, which returns what it finds inside (None where there is nothing)
and the gradient of the input. For any other tape `superposed` calls ``backward``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Array
from .._scaled import ZERO, Scaled, add, scaled

_BAND = 40  # bits that exponents may differ by where a layer mixes rows: 100 with the rows' own, and float32 has 126


class Way(NamedTuple):
    """What all layers on one way back have in common."""

    time_axis: int | None  # of their arrays; None: rows without time
    fault: str | None  # where the forward stopped being finite


class StackNorms(NamedTuple):
    """What is found in layers one after the other."""

    layers: Sequence[Any]
    norms: list[Array]  # log10 of the norms of what enters each layer, then of the output
    inner: list[Any]  # what is found in each layer
    fault: str | None


def scaled_backward(layer: Any, tape: Any, d: Scaled, way: Way) -> tuple[Any, Scaled]:
    """What is found in a layer, None where there is nothing, and the gradient of its input."""
    own = getattr(tape, "_scaled_backward", None)
    if own is None:
        return None, superposed(lambda part: tape.backward(part).input, d, axis=way.time_axis)
    found: tuple[Any, Scaled] = own(layer, d, way)
    return found


def superposed(backward: Callable[[Array], Array], d: Scaled, axis: int | None) -> Scaled:
    """A layer that mixes rows along an axis, or all: similar ones at a time, for it is linear in the gradient."""
    rest = d.exponent.astype(np.int64)
    below: Scaled | None = None
    while below is None or (rest != ZERO).any():
        top = rest.max(axis=axis, keepdims=True, initial=ZERO)
        here = (rest != ZERO) & (rest > top - _BAND)
        part = Scaled(d.values, np.where(here, rest - top, ZERO).astype(np.int32)).plain()
        found = scaled(backward(part), np.broadcast_to(top, rest.shape))
        below = found if below is None else add(below, found)
        rest[here] = ZERO
    return below


class RowwiseTape:
    """What tapes of layers share in which each row of the input's gradient follows from that row alone."""

    output: Array
    backward: Callable[..., Any]

    def _scaled_backward(self, layer: Any, d: Scaled, way: Way) -> tuple[None, Scaled]:
        d_input = self.backward(d.dense).input
        if way.fault is not None:
            d_input[~np.isfinite(self.output).all(axis=-1) & (d.exponent != ZERO)] = np.nan
        return None, scaled(d_input, d.exponent)
