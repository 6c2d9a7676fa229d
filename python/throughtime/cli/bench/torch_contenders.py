"""torch.nn's layers, and torch's way to gradients of every timestep: a loop of cells. Imported only if asked for."""

from __future__ import annotations

import importlib
from typing import Any

from .problems import Array, Task

torch: Any = importlib.import_module("torch")  # by name: mypy need not have it


class Torch:
    """torch.nn.LSTM, GRU or RNN."""

    def __init__(self, task: Task) -> None:
        self._module = self._make(task)
        self._x = torch.from_numpy(task.x).requires_grad_()
        self._d_output = torch.from_numpy(task.d_output)
        self._output: Any = None

    def step(self) -> None:
        self.forward()
        self.backward()

    def forward(self) -> None:
        self._module.zero_grad()
        self._x.grad = self._output = None
        self._output = self._run()

    def backward(self) -> None:
        self._output.backward(self._d_output)

    def answers(self) -> dict[str, Array]:
        gradients = {self._name(name): value.grad for name, value in self._module.named_parameters()}
        found = {"output": self._output.detach(), "input": self._x.grad, **gradients}
        return {name: value.float().numpy() for name, value in found.items()}

    def _make(self, task: Task) -> Any:
        module = getattr(torch.nn, task.cell)(task.problem.I, task.problem.H)
        module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in task.parameters.items()})
        return module

    def _run(self) -> Any:
        return self._module(self._x)[0]

    def _name(self, name: str) -> str:
        return name


class TorchBfloat16(Torch):
    """The same under autocast: parameters and their gradients are float32, all else is bfloat16."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._d_output = self._d_output.bfloat16()

    def _run(self) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super()._run()


class TorchLoop(Torch):
    """A Python loop of torch.nn.LSTMCell, GRUCell or RNNCell that retains the gradient of every state."""

    def _make(self, task: Task) -> Any:
        self._states: list[tuple[Any, ...]] = []
        self._zeros = [torch.zeros(task.problem.B, task.problem.H)] * (2 if task.cell == "LSTM" else 1)
        module = getattr(torch.nn, task.cell + "Cell")(task.problem.I, task.problem.H)
        module.load_state_dict(
            {name.removesuffix("_l0"): torch.from_numpy(array.copy()) for name, array in task.parameters.items()}
        )
        return module

    def _run(self) -> Any:
        self._states = []
        state = tuple(self._zeros)
        for x in self._x.unbind():  # x[t] would make a gradient of all of x at every step
            found = self._module(x, state if len(state) == 2 else state[0])
            state = found if len(state) == 2 else (found,)
            for part in state:
                part.retain_grad()
            self._states.append(state)
        return torch.stack([state[0] for state in self._states])

    def answers(self) -> dict[str, Array]:
        states = zip(("hidden", "cell"), zip(*self._states, strict=True), strict=False)
        gradients = {name: torch.stack([part.grad for part in parts]).numpy() for name, parts in states}
        return super().answers() | gradients

    def _name(self, name: str) -> str:
        return name + "_l0"


BY_NAME = {"torch": Torch, "torch-bfloat16": TorchBfloat16, "torch-loop": TorchLoop}
