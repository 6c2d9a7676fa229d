"""The backward pass with a power-of-two exponent per gradient row, so that norms may leave the range of floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .._arguments import Array, features_together
from .._scaled import ZERO, Scaled, add, has_nan, scaled
from .arguments import time_major
from .faults import first_broken, forward_fault
from .forward import upper_inputs
from .record import Record

if TYPE_CHECKING:
    from .._core import RecurrentGradients


class ScaledPass:
    """The scaled backward pass through a recurrent layer, from the top layer down, and the norms that it fills."""

    def __init__(self, layer: str, record: Record) -> None:
        self.layer, self.record = layer, record
        self.fault = forward_fault(record)
        self.per_sequence = np.full((record.architecture.count, *record.sizes), -np.inf)
        self.per_unit = np.full((record.architecture.count, record.sizes[0], record.architecture.width), -np.inf)

    def run(self, parts: list[Scaled], *, asks_input: bool) -> Scaled:
        """Backpropagate the loss of each direction. Returns the gradient of the input, if asked for.

        `parts` and the result are in the caller's layout.
        """
        record, described = self.record, self.record.architecture
        parts = [self._time_major(part) for part in parts]
        inputs = upper_inputs(record)
        for number in reversed(range(described.num_layers)):
            d = self._layer(number, inputs.pop(), parts, asks_input=asks_input or number > 0)
            parts = self.halves(d) if number else []
        return Scaled(record.user_layout(d.values), record.user_layout(d.exponent[..., None])[..., 0])

    def halves(self, d: Scaled) -> list[Scaled]:
        """The features of each direction."""
        count, width = self.record.architecture.num_directions, self.record.architecture.width
        if count == 1:
            return [d]
        return [scaled(d.values[..., i * width : (i + 1) * width], d.exponent) for i in range(count)]

    def _time_major(self, d: Scaled) -> Scaled:
        layout = self.record.batched, self.record.architecture.batch_first
        values, exponent = (time_major(array, *layout) for array in (d.values, d.exponent[..., None]))
        return Scaled(features_together(values), exponent[..., 0])

    def _layer(self, number: int, x: Array, parts: list[Scaled], *, asks_input: bool) -> Scaled:
        """Run both directions of one layer, each with its part of the gradient. Returns the gradient of the input."""
        first = number * len(parts)
        below = [self._direction(first + i, x, part, asks_input=asks_input) for i, part in enumerate(parts)]
        return add(*below) if asks_input and len(below) > 1 else below[0]

    def _direction(self, index: int, x: Array, d: Scaled, *, asks_input: bool) -> Scaled:
        record = self.record
        d_input = _core.empty(x.shape, x.dtype) if asks_input else None
        exponent = np.full(record.sizes, ZERO, np.int32)
        gradients: RecurrentGradients = {
            "d_output": d.values,
            "d_output_exponent": np.ascontiguousarray(d.exponent),
            "exponent": exponent,
            "d_input": d_input,
            "log10_sequence": self.per_sequence[index],
            "log10_unit": self.per_unit[index],
        }
        if record.sizes[1]:
            _core.backward(record.architecture.cell, record.problem(index, x, record.states, record.every), gradients)
        self._mark_lost(index, d, d_input, exponent)
        return Scaled(x, exponent) if d_input is None else scaled(d_input, exponent)

    def _mark_lost(self, index: int, d: Scaled, d_input: Array | None, exponent: Array) -> None:
        """Set gradients that passed a state that is not finite to NaN: a ReLU, for example, turns them into zeros."""
        record, (steps, batch) = self.record, self.record.sizes
        arrives, broken = d.exponent != ZERO, has_nan(d)
        if not batch or (self.fault is None and not broken.any()):
            return
        valid, reverse = record.valid(), record.architecture.goes_back[index]
        taken = np.arange(steps)[::-1, None] if reverse else np.arange(steps)[:, None]
        latest, latest_nan = (np.where(rows, taken, -1).max(axis=0) for rows in (arrives, broken))
        lost = (first_broken(record, index).min(axis=0) <= latest) & (taken < latest) | (taken <= latest_nan)
        if valid is not None:
            lost &= valid
        self.per_sequence[index][lost] = np.nan
        self.per_unit[index][lost.any(axis=1)] = np.nan
        if d_input is not None:
            d_input[lost], exponent[lost] = np.nan, 0
