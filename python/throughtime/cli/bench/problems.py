"""What is measured: sizes, data, and the one list of problems."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import throughtime as tt

Array = NDArray[Any]

CELLS = {"LSTM": tt.LSTM, "GRU": tt.GRU, "RNN": tt.RNN}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Problem(NamedTuple):
    """Sizes: T timesteps, B sequences, I inputs, H units.

    `last` has a loss on the last step only, and its backward is measured alone. `lean` keeps and returns as little as
    possible; it is measured without contenders.
    """

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    cells: tuple[str, ...] = tuple(CELLS)
    last: bool = False
    lean: bool = False


PROBLEMS = {
    "stream": Problem(1000, 1, 128, 128),  # batch 1: the latency of the recurrence
    "stream-wide": Problem(1000, 1, 256, 256),  # the weights just fit L2
    "long": Problem(10000, 8, 128, 128),
    "train": Problem(1000, 32, 256, 256),
    "wide": Problem(500, 32, 512, 512),  # the weights leave L2
    "wider": Problem(100, 32, 1024, 1024, ("LSTM",)),
    "deepspeech2": Problem(50, 32, 1760, 1760, ("RNN",)),
    "pytorch-case": Problem(50, 64, 500, 500, ("LSTM",)),  # sizes that are no power of two
    "paddle": Problem(629, 128, 128, 128, ("LSTM",)),
    "vanishing": Problem(1000, 32, 256, 256, last=True),  # subnormal gradients
    "million": Problem(1_000_000, 1, 8, 128, ("LSTM",), lean=True),
}
DEFAULT = tuple(name for name, problem in PROBLEMS.items() if not problem.lean)


class Task:
    """A problem of one cell, with its data: weights as a new layer has them, standard normal inputs and gradients.

    The data are drawn when first asked for, and are the same in every process.
    """

    def __init__(self, problem: Problem, cell: str) -> None:
        self.problem = problem
        self.cell = cell

    @property
    def operations(self) -> float:
        """Floating-point operations of what is timed: of the three products of a step, two are the backward's."""
        T, B, I, H = self.problem[:4]  # noqa: E741
        return (4.0 if self.problem.last else 6.0) * T * B * GATES[self.cell] * H * (I + H)

    @cached_property
    def parameters(self) -> dict[str, Array]:
        """Torch's names, shapes and values."""
        parameters: dict[str, Array] = CELLS[self.cell](self.problem.I, self.problem.H, seed=0).parameters
        return parameters

    @cached_property
    def x(self) -> Array:
        """(T, B, I)"""
        T, B, I = self.problem[:3]  # noqa: E741
        return np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)

    @cached_property
    def d_output(self) -> Array:
        """(T, B, H), or (B, H) for the output of the last step alone."""
        T, B, _, H = self.problem[:4]
        d_output = np.random.default_rng(1).standard_normal((1 if self.problem.lean else T, B, H), dtype=np.float32)
        if self.problem.last:
            d_output[:-1] = 0
        return d_output[0] if self.problem.lean else d_output
