"""The interface of a training program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .problems import Array, Task


class Program(Protocol):
    """A model with its optimiser and data."""

    norm: float  # norm of the last step's gradients before clipping

    @property
    def gradients(self) -> dict[str, Array]:
        """The gradients of the last step, clipped."""

    def step(self) -> float:
        """Forward, loss, backward, clip, optimiser; returns the loss."""


Maker = Callable[[Task], Program]
