"""Recurrent layers as torch modules on the device, and the float64 that judges them."""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

from ..problems import CELLS
from .device import Device, Run
from .numbers import Numbers, torch
from .problems import FORWARD, Recurrence


class Data(NamedTuple):
    """Standard normal input and gradient (T, B, H), weights as a new layer has them."""

    x: Any
    d_output: Any
    parameters: dict[str, Any]


@functools.lru_cache(maxsize=3)  # the types of one problem, for all contenders
def data(problem: Recurrence, type: str, place: str) -> Data:
    """The same for every contender, rounded to the type."""
    generator = torch.Generator(place).manual_seed(0)
    dtype = getattr(torch, type)

    def draw() -> Any:
        shape = (problem.T, problem.B, problem.H)
        return torch.randn(shape, generator=generator, device=place).to(dtype)

    weights = CELLS[problem.cell](problem.H, problem.H, seed=0).parameters
    moved = {name: torch.from_numpy(array.copy()).to(place, dtype) for name, array in weights.items()}
    return Data(draw(), draw(), moved)


def reference(problem: Recurrence, numbers: Numbers, device: Device, count: int) -> dict[str, Any]:
    """The first `count` steps in float64, a loss on them alone, by torch's step-by-step kernels without cuDNN."""
    given = data(problem, numbers.type, device.place)
    module = getattr(torch.nn, problem.cell)(problem.H, problem.H, dtype=torch.float64, device=device.place)
    module.load_state_dict(given.parameters)
    x = given.x[:count].double().requires_grad_()
    with torch.backends.cudnn.flags(enabled=False):
        output = module(x)[0]
        output.backward(given.d_output[:count].double())
    gradients = {name: value.grad for name, value in module.named_parameters()}
    found = output.detach()
    return {"inference": found, "output": found, "input": x.grad, **gradients}


class Layer:
    """A module and what is done with it. Subclasses make and call it."""

    def __init__(self, problem: Recurrence, numbers: Numbers, device: Device) -> None:
        self._problem, self._numbers = problem, numbers
        self._data = data(problem, numbers.type, device.place)
        self._x = self._data.x.detach().requires_grad_()
        self._module = self._make(device)
        self._module.load_state_dict({self._own(name): value for name, value in self._data.parameters.items()})
        self._module.to(device.place, numbers.dtype)

    def run(self, which: str) -> Run:
        return self._forward if which == FORWARD else lambda: self._step(self._data.d_output)

    def answers(self, count: int) -> dict[str, Any]:
        d_output = torch.zeros_like(self._data.d_output)
        d_output[:count] = self._data.d_output[:count]
        inference, output = self._forward(), self._step(d_output)
        gradients = {name: self._parameter(name).grad for name in self._data.parameters}
        return {"inference": inference, "output": output.detach(), "input": self._x.grad, **gradients}

    def _forward(self) -> Any:
        """Inference: nothing is kept for a backward, by cuDNN only where the module is not in training."""
        self._module.eval()
        with torch.no_grad():
            return self._call()

    def _step(self, d_output: Any) -> Any:
        self._module.train()
        self._module.zero_grad()
        self._x.grad = None
        output = self._call()
        output.backward(d_output)
        return output

    def _parameter(self, name: str) -> Any:
        return self._module.get_parameter(self._own(name))

    def _make(self, device: Device) -> Any:
        H = self._problem.H
        classes = importlib.import_module(self._classes)
        return getattr(classes, self._problem.cell)(H, H).to(device.place, self._numbers.dtype)

    def _call(self) -> Any:
        return self._module(self._x)[0]

    def _own(self, name: str) -> str:
        return name

    _classes = "torch.nn"


class Ours(Layer):
    """throughtime.torch's module."""

    _classes = "throughtime.torch"


class CuDNN(Layer):
    """torch.nn's module, which hands the whole sequence to cuDNN where it lies on a GPU."""


class Loop(Layer):
    """A Python loop of torch.nn.LSTMCell, GRUCell or RNNCell."""

    def _make(self, device: Device) -> Any:
        cell = getattr(torch.nn, self._problem.cell + "Cell")
        return cell(self._problem.H, self._problem.H).to(device.place, self._numbers.dtype)

    def _call(self) -> Any:
        state, outputs = None, []
        for x in self._x.unbind():
            state = self._module(x, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)

    def _own(self, name: str) -> str:
        return name.removesuffix("_l0")


class FlashRNN(Layer):
    """flashrnn's fused LSTM of one head, after the input's product by torch. Its gates come in torch's order."""

    def _make(self, device: Device) -> Any:
        if self._problem.cell != "LSTM":
            raise NotImplementedError(f"flashrnn is measured for the LSTM, not the {self._problem.cell}")
        self._flashrnn = importlib.import_module("flashrnn").flashrnn
        return torch.nn.LSTM(self._problem.H, self._problem.H).to(device.place, self._numbers.dtype)  # holds parameters

    def _call(self) -> Any:
        T, B, H = self._x.shape
        w_ih, w_hh, b_ih, b_hh = (self._parameter(name) for name in self._data.parameters)
        projected = torch.nn.functional.linear(self._x, w_ih).view(T, B, 4, 1, H).transpose(0, 1)
        states, _ = self._flashrnn(
            projected, w_hh.view(4, 1, H, H), (b_ih + b_hh).view(4, 1, H), function="lstm", dtype=self._numbers.type
        )
        return states[0, :, :, 0].transpose(0, 1)
