"""What is measured on a device: sizes, the work that is in them, and the lists of problems."""

from __future__ import annotations

from typing import NamedTuple

from ..problems import GATES

FORWARD, STEP, BACKWARD = "forward", "forward + backward", "backward"


class Work(NamedTuple):
    """The least that a pass has to do: floating-point operations, numbers read and written, steps one after another."""

    operations: float
    numbers: float
    steps: int | None = None


class Recurrence(NamedTuple):
    """One layer: T timesteps, B sequences, H units and inputs."""

    cell: str
    T: int
    B: int
    H: int
    passes: tuple[str, ...] = (FORWARD, STEP)

    @property
    def name(self) -> str:
        return f"{self.cell} T={self.T} B={self.B} H={self.H}"

    def work(self, which: str) -> Work:
        """A product of W_ih and W_hh forward, two backward. Forward, x, output and weights cross memory once;
        backward x, output, d_output, d_input do, the weights and their gradients."""
        once = 1 if which == FORWARD else 3
        rows, columns = GATES[self.cell] * self.H, 2 * self.H
        steps = self.T * self.B
        return Work(2.0 * once * steps * rows * columns, float(once * (steps + rows) * columns), self.T)


class AddNorm(NamedTuple):
    """x + branch and its LayerNorm: N rows of F features."""

    N: int
    F: int
    cell: str = "AddLayerNorm"
    passes: tuple[str, ...] = (FORWARD, BACKWARD)

    @property
    def name(self) -> str:
        return f"{self.cell} N={self.N} F={self.F}"

    def work(self, which: str) -> Work:
        """Forward x and branch in, their sum and its LayerNorm out; backward both gradients and the sum in, d_x out.
        Some ten operations a number are nothing beside that."""
        return Work(0.0, 4.0 * self.N * self.F)


Problem = Recurrence | AddNorm

ELEMENTS = 2**27  # of each array: kernels take longer than the host needs to launch them

_CELLS = ("LSTM", "GRU")

PROBLEMS: dict[str, tuple[Problem, ...]] = {
    "mark": tuple(Recurrence(cell, 1024, 16, 768) for cell in GATES),  # the size for which times are published
    "sizes": tuple(
        Recurrence(cell, 1024, B, H) for cell in _CELLS for H in (256, 512, 768, 1024) for B in (16, 64, 128)
    ),
    "long": tuple(
        Recurrence(cell, 10000, B, H, (FORWARD,)) for cell in _CELLS for H in (128, 256, 512) for B in (1, 4, 16)
    ),
    "layer-norm": tuple(AddNorm(ELEMENTS // F, F) for F in (256, 768, 1024, 4096, 8192)),
}
DEFAULT = ("sizes", "long", "layer-norm")
CELLS = (*GATES, "AddLayerNorm")
