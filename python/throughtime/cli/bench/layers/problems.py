"""The problems with their sizes and work, and the data that the CPU's contenders share."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import throughtime as tt

Array = NDArray[Any]

CELLS = {"LSTM": tt.LSTM, "GRU": tt.GRU, "RNN": tt.RNN}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FORWARD, STEP, BACKWARD = "forward", "forward + backward", "backward"
_PRODUCTS = {FORWARD: 1, STEP: 3, BACKWARD: 2}  # with each weight: one forward, two backward


class Work(NamedTuple):
    """The least work of a pass: floating-point operations, numbers read and written, sequential steps."""

    operations: float
    numbers: float
    steps: int | None = None


class Recurrence(NamedTuple):
    """One layer: T timesteps, B sequences, I inputs, H units.

    If the backward is timed alone, the loss is on the last step only. `lean` keeps and returns as little as possible,
    and is measured without contenders.
    """

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    timed: tuple[str, ...] = (STEP,)
    lean: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """T, B, I and H."""
        return {name: getattr(self, name) for name in "TBIH"}

    @property
    def last(self) -> bool:
        """Whether the loss is on the last step only."""
        return self.timed == (BACKWARD,)

    def terms(self, steps: int) -> int:
        """The longest sums: over the gates' inputs and, for the gradients of weights, over steps and sequences."""
        return self.I + (1 + GATES[self.cell]) * self.H + steps * self.B

    def work(self, timed: str) -> Work:
        """In the forward, input, output and weights cross memory once. In the backward, they and their gradients do."""
        products = _PRODUCTS[timed]
        rows, columns = GATES[self.cell] * self.H, self.I + self.H
        steps = self.T * self.B
        return Work(2.0 * products * steps * rows * columns, float(products * (steps + rows) * columns), self.T)

    def __str__(self) -> str:
        same = self.I == self.H
        return " ".join(f"{name}={size}" for name, size in self.sizes.items() if not (same and name == "I"))


class AddNorm(NamedTuple):
    """x + branch and its LayerNorm: N rows of F features."""

    N: int
    F: int
    timed: tuple[str, ...] = (FORWARD, BACKWARD)
    cell: str = "AddLayerNorm"

    @property
    def sizes(self) -> dict[str, int]:
        """N and F."""
        return {"N": self.N, "F": self.F}

    def terms(self, rows: int) -> int:
        """The longest sums: over features and, for the gradients of weight and bias, over rows."""
        return self.F + rows

    def work(self, timed: str) -> Work:
        """Forward reads x and branch and writes their sum and its LayerNorm. Backward reads both gradients and the sum
        and writes d_x. The time of about ten operations per number is negligible."""
        return Work(0.0, 4.0 * self.N * self.F)

    def __str__(self) -> str:
        return f"N={self.N} F={self.F}"


Problem = Recurrence | AddNorm


def _each(T: int, B: int, I: int, H: int, *cells: str, **more: Any) -> tuple[Recurrence, ...]:  # noqa: E741
    return tuple(Recurrence(cell, T, B, I, H, **more) for cell in cells or CELLS)


CPU_PROBLEMS: dict[str, tuple[Recurrence, ...]] = {
    "stream": _each(1000, 1, 128, 128),  # batch 1: the latency of the recurrence
    "stream-wide": _each(1000, 1, 256, 256),  # the weights just fit L2
    "long": _each(10000, 8, 128, 128),
    "train": _each(1000, 32, 256, 256),
    "wide": _each(500, 32, 512, 512),  # the weights exceed L2
    "wider": _each(100, 32, 1024, 1024, "LSTM"),
    "deepspeech2": _each(50, 32, 1760, 1760, "RNN"),
    "pytorch-case": _each(50, 64, 500, 500, "LSTM"),  # sizes that are not powers of two
    "paddle": _each(629, 128, 128, 128, "LSTM"),
    "vanishing": _each(1000, 32, 256, 256, timed=(BACKWARD,)),  # subnormal gradients
    "million": _each(1_000_000, 1, 8, 128, "LSTM", lean=True),
}
CPU_DEFAULT = tuple(name for name, problems in CPU_PROBLEMS.items() if not problems[0].lean)

ELEMENTS = 2**27  # size of each array: kernels take longer than the host needs to launch them
_MAIN = ("LSTM", "GRU")
GPU_PROBLEMS: dict[str, tuple[Problem, ...]] = {
    "mark": _each(1024, 16, 768, 768, timed=(FORWARD, STEP)),  # the size for which times are published
    "sizes": tuple(
        Recurrence(cell, 1024, B, H, H, (FORWARD, STEP))
        for cell in _MAIN
        for H in (256, 512, 768, 1024)
        for B in (16, 64, 128)
    ),
    "long": tuple(
        Recurrence(cell, 10000, B, H, H, (FORWARD,)) for cell in _MAIN for H in (128, 256, 512) for B in (1, 4, 16)
    ),
    "layer-norm": tuple(AddNorm(ELEMENTS // F, F) for F in (256, 768, 1024, 4096, 8192)),
}
GPU_DEFAULT = ("sizes", "long", "layer-norm")
GPU_CELLS = (*CELLS, "AddLayerNorm")


class Data(NamedTuple):
    """Standard normal x (T, B, I) and d_output (T, B, H), and a new layer's weights."""

    x: Any
    d_output: Any
    parameters: dict[str, Any]


@lru_cache(maxsize=2)  # of one problem, for all contenders
def host_data(problem: Recurrence) -> Data:
    """NumPy arrays in float32, the same in every process. With `lean`, d_output (B, H) is that of the last step."""
    T, B, I, H = problem.sizes.values()  # noqa: E741
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)
    d_output = np.random.default_rng(1).standard_normal((1 if problem.lean else T, B, H), dtype=np.float32)
    if problem.last:
        d_output[:-1] = 0
    parameters: dict[str, Array] = CELLS[problem.cell](I, H, seed=0).parameters
    return Data(x, d_output[0] if problem.lean else d_output, parameters)
