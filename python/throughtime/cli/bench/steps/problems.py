"""The table of models and sizes, and their initial weights and data."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import throughtime as tt

from ..layers.problems import CELLS, GATES

Array = NDArray[Any]

LEARNING_RATE = 1e-3  # Adam's default, in torch and here
MAX_NORM = 0.25  # joint norm of all gradients; small enough to clip in most of these problems
STEP_CELLS = ("LSTM", "GRU")
_BATCHES = 4  # drawn in advance and used cyclically


class Problem(NamedTuple):
    """Model and sizes: T timesteps, B sequences, I inputs, H units, and the outputs of the Linear after them.

    `reads` selects the input of Linear: the output of every step, that of the last step, or the final state h_n of the
    last layer. With `characters`, inputs are indices into an Embedding of as many rows as there are outputs.
    """

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    outputs: int
    reads: Literal["every", "last", "state"] = "every"
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    characters: bool = False
    shortest: int | None = None  # sequence of a packed batch; None: all have T steps
    carried: bool = False  # a step starts from the state in which the step before ended
    cells: tuple[str, ...] = STEP_CELLS

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 1 + self.bidirectional


PROBLEMS = {
    "language": Problem(64, 32, 128, 128, 103, layers=2, characters=True),
    "language-wide": Problem(128, 32, 256, 256, 103, characters=True),
    "forecast": Problem(24, 256, 15, 128, 1, "last", "mse", batch_first=True),
    "classify": Problem(100, 32, 32, 128, 10, "state", layers=2, bidirectional=True, shortest=20),
    "classify-last": Problem(200, 64, 64, 256, 10, "last", batch_first=True),
    "policy": Problem(32, 8, 16, 64, 6, cells=("GRU",)),  # small enough for the overhead of each call to show
    "stream-train": Problem(2000, 1, 128, 128, 128, loss="mse", carried=True),
}


class Batch(NamedTuple):
    """The data of one training step. `lengths` (B,) are given if `shortest` is."""

    x: Array
    target: Array
    lengths: Array | None


class Task:
    """A problem of one cell with its initial weights and data, which are the same in every process."""

    def __init__(self, problem: Problem, cell: str) -> None:
        self.problem = problem
        self.cell = cell

    @property
    def terms(self) -> int:
        """Length of the sums that round: over gate inputs in every layer, over time and batch, in the Linear."""
        p, gates = self.problem, GATES[self.cell]
        widths = [p.I, *[p.directions * p.H] * (p.layers - 1)]
        return sum(width + (1 + gates) * p.H for width in widths) + p.T * p.B + p.directions * p.H + p.outputs

    @cached_property
    def parameters(self) -> dict[str, Array]:
        """Torch's names below ``embedding``, ``recurrent`` and ``linear``; drawn as new layers draw them."""
        p = self.problem
        recurrent: Any = CELLS[self.cell](p.I, p.H, p.layers, bidirectional=p.bidirectional, seed=1)
        layers = {"recurrent": recurrent, "linear": tt.Linear(p.directions * p.H, p.outputs, seed=2)}
        if p.characters:
            layers["embedding"] = tt.Embedding(p.outputs, p.I, seed=0)
        return {f"{part}.{name}": array for part, layer in layers.items() for name, array in layer.parameters.items()}

    def batches(self) -> list[Batch]:
        """A few batches, which the steps use cyclically."""
        rng = np.random.default_rng(3)
        return [self._batch(rng) for _ in range(_BATCHES)]

    def _batch(self, rng: np.random.Generator) -> Batch:
        p = self.problem
        if p.characters:
            frequencies = 1 / np.arange(1, p.outputs + 1)  # a few characters are most of a text
            text = rng.choice(p.outputs, (p.T + 1, p.B), p=frequencies / frequencies.sum())
            return Batch(text[:-1], text[1:], None)
        x = rng.standard_normal((p.B, p.T, p.I) if p.batch_first else (p.T, p.B, p.I), dtype=np.float32)
        predictions = (p.T, p.B) if p.reads == "every" else (p.B,)
        if p.loss == "mse":
            target: Array = rng.standard_normal((*predictions, p.outputs), dtype=np.float32)
        else:
            target = rng.integers(p.outputs, size=predictions)
        return Batch(x, target, None if p.shortest is None else self._lengths(rng, p.shortest))

    def _lengths(self, rng: np.random.Generator, shortest: int) -> Array:
        lengths = rng.integers(shortest, self.problem.T + 1, self.problem.B)
        lengths[0] = self.problem.T
        return lengths
