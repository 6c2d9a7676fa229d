"""Thin out curves and heat maps of more numbers than a figure has pixels: draw the largest of several neighbours."""

from __future__ import annotations

import numpy as np

from .._arguments import Array

_POINTS = 2000  # points of a curve, columns or rows of a heat map: more than a figure has pixels


def spread(rows: int, most: int) -> list[int]:
    """All rows, or `most` of them, evenly spaced, including the first and the last."""
    return [int(row) for row in np.linspace(0, rows - 1, min(rows, most)).round()]


def bin_size(size: int) -> int:
    """The number of neighbours that are drawn as one point."""
    return -(-size // _POINTS)


def largest(values: Array, size: int, axis: int) -> Array:
    """The largest value of every `size` neighbours along an axis."""
    reduced: Array = np.maximum.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis)
    return reduced


def thinned_curve(*curves: Array) -> tuple[Array, list[Array]]:
    """For each point drawn: the middle of its timesteps, and the largest value of each curve there."""
    steps = len(curves[0])
    size = bin_size(steps)
    starts = np.arange(0, steps, size)
    return (starts + np.minimum(starts + size, steps) - 1) / 2, [largest(curve, size, 0) for curve in curves]


def binned_label(what: str, size: int) -> str:
    """The label of an axis with `size` numbers; it says if several are drawn as one."""
    return what if bin_size(size) == 1 else f"{what} (the largest of every {bin_size(size)} is drawn)"
