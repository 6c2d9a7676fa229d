"""Who is measured: throughtime, and the frameworks by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import throughtime as tt

from .problems import CELLS, Array, Task

OURS = "throughtime"
# Contender to the package that it needs.
FRAMEWORKS = {"torch": "torch", "torch-bfloat16": "torch", "torch-loop": "torch", "jax": "jax"}
PRECISIONS = {"torch-bfloat16": "medium"}  # of those that do not compute in float32
INSTALL = {
    "torch": "pip install torch --index-url https://download.pytorch.org/whl/cpu",
    "jax": "pip install jax",
}


class Contender(Protocol):
    """One layer with its data. What the last step made is let go when the next one begins."""

    def step(self) -> None:
        """A training step: forward, then backward."""

    def forward(self) -> None:
        """Its first half."""

    def backward(self) -> None:
        """Its second half, after `forward`."""

    def answers(self) -> dict[str, Array]:
        """What the last step gave: `output`, `input` (its gradient), those of the parameters, and of every state
        where the contender has them."""


Maker = Callable[[Task], Contender]


class Ours:
    """throughtime's layer, with dL/dh_t and dL/dc_t of every timestep, its default."""

    def __init__(self, task: Task, memory: str = "full", dtype: str = "float32") -> None:
        self._layer = CELLS[task.cell](task.problem.I, task.problem.H, dtype=dtype)
        self._layer.load_parameters(task.parameters)
        self._x = task.x.astype(dtype, copy=False)
        self._d_output = task.d_output.astype(dtype, copy=False)
        lean = task.problem.lean
        self._forward = {"output": "last", "memory": "checkpoint"} if lean else {"memory": memory}
        self._backward: dict[str, Any] = {"timesteps": ()} if lean else {}
        self._tape: tt.Tape | None = None
        self._grads: tt.Gradients | None = None

    def step(self) -> None:
        self.forward()
        self.backward()

    def forward(self) -> None:
        self._tape = self._grads = None
        self._tape = self._layer.forward(self._x, **self._forward)

    def backward(self) -> None:
        self._grads = None
        self._grads = self.tape.backward(self._d_output, **self._backward)

    @property
    def tape(self) -> tt.Tape:
        """Of the last forward."""
        assert self._tape is not None
        return self._tape

    def answers(self) -> dict[str, Array]:
        assert self._grads is not None
        states = {name: vars(self._grads)[name][0] for name in ("hidden", "cell") if name in vars(self._grads)}
        return {"output": self.tape.output, "input": self._grads.input, **states, **self._grads.parameters}


def load(name: str, threads: int) -> Maker:
    """What makes this contender's layers, after its framework was imported and given its threads.

    Raises
    ------
    ImportError
        If the framework is not there.
    """
    if name == OURS:
        tt.set_num_threads(threads)
        return Ours
    if name == "jax":
        from . import jax_contender

        jax_contender.set_threads(threads)
        importlib.import_module("jax")
        return jax_contender.Jax
    importlib.import_module("torch").set_num_threads(threads)
    from . import torch_contenders

    return torch_contenders.BY_NAME[name]
