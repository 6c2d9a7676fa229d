"""The training program in the NumPy API. torch is not imported."""

from __future__ import annotations

import itertools
from typing import Any

import throughtime as tt

from ..layers.problems import CELLS
from .problems import LEARNING_RATE, MAX_NORM, Array, Task


class NumpyProgram:
    """Model, optimiser and data; `step` is one iteration of a training loop."""

    def __init__(self, task: Task) -> None:
        self._problem = p = task.problem
        self._embedding = tt.Embedding(p.outputs, p.I) if p.characters else None
        self._recurrent: Any = CELLS[task.cell](
            p.I, p.H, p.layers, bidirectional=p.bidirectional, batch_first=p.batch_first
        )
        self._linear = tt.Linear(p.directions * p.H, p.outputs)
        self._parameters = self._named(
            self._embedding.parameters if self._embedding else None, self._recurrent.parameters, self._linear.parameters
        )
        for name, array in task.parameters.items():
            self._parameters[name][...] = array
        self._loss = tt.cross_entropy if p.loss == "cross_entropy" else tt.mse
        self._optimizer = tt.optim.Adam(lr=LEARNING_RATE)
        self._batches = itertools.cycle(task.batches())
        self._state: Any = None
        self.gradients: dict[str, Array] = {}
        self.norm = 0.0

    def step(self) -> float:
        """Forward, loss, backward, clip, optimiser; returns the loss."""
        batch = next(self._batches)
        embedded = self._embedding.forward(batch.x) if self._embedding else None
        x = batch.x if embedded is None else embedded.output
        output = "all" if self._problem.reads == "every" else "last"
        tape = self._recurrent.forward(x, self._state, batch.lengths, output=output)
        prediction = self._linear.forward(tape.output)
        loss, d_prediction = self._loss(prediction.output, batch.target)
        linear = prediction.backward(d_prediction)
        recurrent = tape.backward(linear.input, timesteps=())  # training alone needs no gradient per timestep
        embedding = embedded.backward(recurrent.input).parameters if embedded else None
        self.gradients = self._named(embedding, recurrent.parameters, linear.parameters)
        self.norm = tt.clip_grad_norm(self.gradients, MAX_NORM)
        self._optimizer.step(self._parameters, self.gradients)
        if self._problem.carried:
            self._state = tape.final_state
        return loss

    @staticmethod
    def _named(
        embedding: dict[str, Array] | None, recurrent: dict[str, Array], linear: dict[str, Array]
    ) -> dict[str, Array]:
        parts = {"embedding": embedding or {}, "recurrent": recurrent, "linear": linear}
        return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
