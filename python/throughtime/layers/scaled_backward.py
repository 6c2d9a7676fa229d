"""The backward pass of `gradient_flow`: every row of a gradient has a separate exponent.

A tape may have a method ``_scaled_backward(layer, d, way)``, which returns the norms found inside the layer, or None,
and the gradient of the input. For any other tape `superposed` calls ``backward``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Array
from .._scaled import ZERO, Scaled, add, scaled

_BAND = 40  # bits by which exponents of mixed rows may differ: 100 with the rows' own range; float32 has 126


class Way(NamedTuple):
    """The settings that all layers of one backward pass share."""

    time_axis: int | None  # of their arrays; None if rows have no time
    fault: str | None  # the place at which the forward stopped being finite


class StackNorms(NamedTuple):
    """The norms found in a stack of layers."""

    layers: Sequence[Any]
    norms: list[Array]  # log10 of the gradient norms of each layer's input, then of the output
    inside: list[Any]  # the norms found inside each layer, or None
    fault: str | None


def scaled_backward(layer: Any, tape: Any, d: Scaled, way: Way) -> tuple[Any, Scaled]:
    """The norms found inside a layer, or None, and the gradient of its input."""
    own = getattr(tape, "_scaled_backward", None)
    if own is None:
        return None, superposed(lambda part: tape.backward(part).input, d, axis=way.time_axis)
    found: tuple[Any, Scaled] = own(layer, d, way)
    return found


def superposed(backward: Callable[[Array], Array], d: Scaled, axis: int | None) -> Scaled:
    """The gradient of a layer that mixes rows along an axis (None: all). It is linear, so rows of similar exponents are
    backpropagated together, and the results added.
    """
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
    """Base class of tapes in which each row of the input's gradient depends only on the same row of the output's."""

    output: Array
    backward: Callable[..., Any]

    def _scaled_backward(self, layer: Any, d: Scaled, way: Way) -> tuple[None, Scaled]:
        d_input = self.backward(d.dense).input
        if way.fault is not None:
            d_input[~np.isfinite(self.output).all(axis=-1) & (d.exponent != ZERO)] = np.nan
        return None, scaled(d_input, d.exponent)
