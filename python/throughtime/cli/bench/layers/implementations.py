"""Implementations of a layer, each with its data: ours in NumPy; those of other frameworks by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import throughtime as tt

from .problems import CELLS, Array, Recurrence, host_data

OURS = "throughtime"
# Contender to the package that it needs.
FRAMEWORKS = {"torch": "torch", "torch-bfloat16": "torch", "torch-loop": "torch", "jax": "jax"}
RECURRENT = ("cudnn", "flashrnn", "torch-loop")  # on a GPU
MODES = ("full", "states", "checkpoint")  # of our memory
PRECISIONS = {"torch-bfloat16": "medium"}  # contenders that do not compute in float32
INSTALL = {
    "torch": "pip install torch --index-url https://download.pytorch.org/whl/cpu",
    "jax": "pip install jax",
}


class Implementation(Protocol):
    """One layer with its data. It frees the results of a step when the next begins."""

    def step(self) -> None:
        """A training step: forward, then backward."""

    def forward(self) -> None:
        """The first half of a step."""

    def backward(self) -> None:
        """The second half, after `forward`."""

    def answers(self, compared: int) -> dict[str, Any]:
        """Take a step with a loss on the first `compared` timesteps only. Returns the outputs and the gradients of the
        input, of the parameters, and, if the implementation has them, of every state."""


Maker = Callable[[Recurrence], Implementation]


class Ours:
    """throughtime's layer, with dL/dh_t and dL/dc_t of every timestep, its default."""

    def __init__(self, problem: Recurrence, memory: str = "full", dtype: str = "float32") -> None:
        data = host_data(problem)
        self._layer = CELLS[problem.cell](problem.I, problem.H, dtype=dtype)
        self._layer.load_parameters(data.parameters)
        self._x = data.x.astype(dtype, copy=False)
        self._d_output = data.d_output.astype(dtype, copy=False)
        self._forward = {"output": "last", "memory": "checkpoint"} if problem.lean else {"memory": memory}
        self._backward: dict[str, Any] = {"timesteps": ()} if problem.lean else {}
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
        """The tape of the last forward."""
        assert self._tape is not None
        return self._tape

    def answers(self, compared: int) -> dict[str, Array]:
        assert compared == len(self._x)
        self.step()
        assert self._grads is not None
        states = {name: vars(self._grads)[name][0] for name in ("hidden", "cell") if name in vars(self._grads)}
        return {"output": self.tape.output, "input": self._grads.input, **states, **self._grads.parameters}


def reference(problem: Recurrence) -> dict[str, Array]:
    """The answers of our own layer in float64, which the tests compare with its specification."""
    return Ours(problem, dtype="float64").answers(problem.T)


def load(name: str, threads: int) -> Maker:
    """Import a contender's framework, set its threads, and return the maker of its layers.

    Raises
    ------
    ImportError
        If the framework is not installed.
    """
    if name == OURS:
        tt.set_num_threads(threads)
        return Ours
    if name == "jax":
        from . import jax_layer

        jax_layer.set_threads(threads)
        importlib.import_module("jax")
        return jax_layer.Jax
    importlib.import_module("torch").set_num_threads(threads)
    from . import torch_layers

    return torch_layers.ON_HOST[name]
