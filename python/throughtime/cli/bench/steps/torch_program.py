"""The training program in torch, with torch.nn's recurrent layers or ours. Imported on request only."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_padded_sequence

import throughtime.torch

from .problems import LEARNING_RATE, MAX_NORM, Array, Batch, Problem, Task
from .program import Maker


class Model(nn.Module):
    """Embedding, recurrent layers of the given package (torch.nn or throughtime.torch), Linear."""

    def __init__(self, problem: Problem, cell: str, package: Any) -> None:
        super().__init__()
        self._problem = p = problem
        self.embedding = nn.Embedding(p.outputs, p.I) if p.characters else None
        self.recurrent = getattr(package, cell)(
            p.I, p.H, p.layers, bidirectional=p.bidirectional, batch_first=p.batch_first
        )
        self.linear = nn.Linear(p.directions * p.H, p.outputs)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Predictions and the final state."""
        inputs: Any = x if self.embedding is None else self.embedding(x)
        if lengths is not None:
            inputs = pack_padded_sequence(inputs, lengths, enforce_sorted=False)
        output, state = self.recurrent(inputs, state)
        return self.linear(self._read(output, state)), state

    def _read(self, output: Any, state: Any) -> Tensor:
        if self._problem.reads == "state":
            h_n: Tensor = state[0] if isinstance(state, tuple) else state
            return torch.cat(h_n[-self._problem.directions :].unbind(), 1)
        last = self._problem.reads == "last"
        chosen: Tensor = (output[:, -1] if self._problem.batch_first else output[-1]) if last else output
        return chosen


class TorchProgram:
    """Model, optimiser and data; `step` is one iteration of a training loop."""

    def __init__(
        self, task: Task, package: Any = nn, *, compiled: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self._carried = task.problem.carried
        self._model = Model(task.problem, task.cell, package).to(dtype)
        self._model.load_state_dict({name: torch.from_numpy(array) for name, array in task.parameters.items()})
        self._run: Any = torch.compile(self._model) if compiled else self._model
        self._loss = cross_entropy if task.problem.loss == "cross_entropy" else functional.mse_loss
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=LEARNING_RATE)
        self._batches = itertools.cycle([_tensors(batch, dtype) for batch in task.batches()])
        self._state: Any = None
        self.norm = 0.0

    def step(self) -> float:
        """Forward, loss, backward, clip, optimiser; returns the loss."""
        x, lengths, target = next(self._batches)
        self._optimizer.zero_grad()
        prediction, state = self._run(x, lengths, self._state)
        loss: Any = self._loss(prediction, target)
        loss.backward()
        self.norm = clip_grad_norm_(self._model.parameters(), MAX_NORM).item()
        self._optimizer.step()
        if self._carried:
            self._state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        return float(loss.item())

    @property
    def gradients(self) -> dict[str, Array]:
        """The gradients of the last step, clipped."""
        return {
            name: parameter.grad.numpy().copy()
            for name, parameter in self._model.named_parameters()
            if parameter.grad is not None
        }


def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over all leading axes."""
    return functional.cross_entropy(prediction.flatten(0, -2), target.flatten())


def _tensors(batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """Inputs, lengths and targets; floating-point numbers in this dtype, and integers as they are."""
    x, target = (torch.from_numpy(array) for array in (batch.x, batch.target))
    lengths = None if batch.lengths is None else torch.from_numpy(batch.lengths)
    return _cast(x, dtype), lengths, _cast(target, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


double: Maker = functools.partial(TorchProgram, dtype=torch.float64)  # the reference
BY_NAME: dict[str, Maker] = {
    "throughtime.torch": functools.partial(TorchProgram, package=throughtime.torch),
    "torch": TorchProgram,
    "torch-compile": functools.partial(TorchProgram, compiled=True),
}
