"""Recurrent layers as torch modules, on the CPU or a GPU, and their float64 reference. Imported on request only."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from .device import Device
from .dtypes import Numbers
from .problems import CELLS, FORWARD, Array, Data, Recurrence, host_data

torch: Any = importlib.import_module("torch")  # by name: mypy need not have it


@functools.lru_cache(maxsize=3)  # the types of one problem, for all contenders
def device_data(problem: Recurrence, type: str, place: str) -> Data:
    """Data drawn on the device, the same for every contender, rounded to the type."""
    generator = torch.Generator(place).manual_seed(0)
    dtype = getattr(torch, type)

    def draw(size: int) -> Any:
        return torch.randn((problem.T, problem.B, size), generator=generator, device=place).to(dtype)

    parameters = CELLS[problem.cell](problem.I, problem.H, seed=0).parameters
    moved = {name: torch.from_numpy(array.copy()).to(place, dtype) for name, array in parameters.items()}
    return Data(draw(problem.I), draw(problem.H), moved)


def reference(problem: Recurrence, type: str, device: Device, compared: int) -> dict[str, Any]:
    """The first steps in float64, with a loss on them only, from torch's step-by-step kernels without cuDNN."""
    data = device_data(problem, type, device.place)
    module = getattr(torch.nn, problem.cell)(problem.I, problem.H, dtype=torch.float64, device=device.place)
    module.load_state_dict(data.parameters)
    x = data.x[:compared].double().requires_grad_()
    with torch.backends.cudnn.flags(enabled=False):
        output = module(x)[0]
        output.backward(data.d_output[:compared].double())
    gradients = {name: value.grad for name, value in module.named_parameters()}
    found = output.detach()
    return {"inference": found, "output": found, "input": x.grad, **gradients}


class Layer:
    """A module with its data. Subclasses make and call it differently."""

    package = "torch.nn"

    def __init__(self, problem: Recurrence, data: Data, dtype: Any = torch.float32) -> None:
        self._problem, self._data = problem, data
        self._x, self._d_output = data.x.detach().requires_grad_(), data.d_output
        self._module = self._make(problem).to(data.x.device, dtype)
        self._module.load_state_dict({self._own(name): value for name, value in data.parameters.items()})
        self._output: Any = None

    def step(self) -> None:
        self.forward()
        self.backward()

    def forward(self) -> None:
        self._module.train()
        self._module.zero_grad()
        self._x.grad = self._output = None
        self._output = self._call()

    def backward(self) -> None:
        self._output.backward(self._d_output)

    def inference(self) -> Any:
        """A forward that stores nothing for a backward; with cuDNN, the module must be in inference mode for this."""
        self._module.eval()
        with torch.no_grad():
            return self._call()

    def answers(self, compared: int) -> dict[str, Any]:
        inference = {"inference": self.inference()} if FORWARD in self._problem.timed else {}
        whole = self._d_output
        if compared < len(whole):
            self._d_output = torch.zeros_like(whole)
            self._d_output[:compared] = whole[:compared]
        self.step()
        self._d_output = whole
        gradients = {name: self._parameter(name).grad for name in self._data.parameters}
        return {**inference, "output": self._output.detach(), "input": self._x.grad, **gradients}

    def _make(self, problem: Recurrence) -> Any:
        return getattr(importlib.import_module(self.package), problem.cell)(problem.I, problem.H)

    def _call(self) -> Any:
        return self._module(self._x)[0]

    def _parameter(self, name: str) -> Any:
        return self._module.get_parameter(self._own(name))

    def _own(self, name: str) -> str:
        """The module's own name of a parameter."""
        return name


class OurLayer(Layer):
    """throughtime.torch's module."""

    package = "throughtime.torch"


class Loop(Layer):
    """A Python loop of torch.nn.LSTMCell, GRUCell or RNNCell."""

    def _make(self, problem: Recurrence) -> Any:
        return getattr(torch.nn, problem.cell + "Cell")(problem.I, problem.H)

    def _call(self) -> Any:
        state, outputs = None, []
        for x in self._x.unbind():  # x[t] would make a gradient of all of x at every step
            state = self._module(x, state)
            parts = state if isinstance(state, tuple) else (state,)
            self._visit(parts)
            outputs.append(parts[0])
        return torch.stack(outputs)

    def _visit(self, state: tuple[Any, ...]) -> None:
        pass

    def _own(self, name: str) -> str:
        return name.removesuffix("_l0")


class FlashRNN(Layer):
    """flashrnn's fused LSTM of one head, after torch's product with the input. Its gates are in torch's order."""

    def _make(self, problem: Recurrence) -> Any:
        if problem.cell != "LSTM":
            raise NotImplementedError(f"flashrnn is measured for the LSTM, not the {problem.cell}")
        self._flashrnn = importlib.import_module("flashrnn").flashrnn
        return super()._make(problem)  # holds the parameters

    def _call(self) -> Any:
        T, B, _ = self._x.shape
        H = self._problem.H
        w_ih, w_hh, b_ih, b_hh = (self._parameter(name) for name in self._data.parameters)
        projected = torch.nn.functional.linear(self._x, w_ih).view(T, B, 4, 1, H).transpose(0, 1)
        dtype = str(self._x.dtype).removeprefix("torch.")
        states, _ = self._flashrnn(
            projected, w_hh.view(4, 1, H, H), (b_ih + b_hh).view(4, 1, H), function="lstm", dtype=dtype
        )
        return states[0, :, :, 0].transpose(0, 1)


class _OnHost(Layer):
    """A module on the CPU that takes and returns NumPy arrays."""

    def __init__(self, problem: Recurrence) -> None:
        x, d_output, parameters = host_data(problem)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in parameters.items()}
        super().__init__(problem, Data(torch.from_numpy(x), torch.from_numpy(d_output), tensors))

    def answers(self, compared: int) -> dict[str, Array]:
        return {name: tensor.float().numpy() for name, tensor in super().answers(compared).items()}


class HostLayer(_OnHost):
    """torch.nn.LSTM, GRU or RNN."""


class HostBfloat16(_OnHost):
    """The same under autocast: parameters and their gradients are float32, everything else is bfloat16."""

    def __init__(self, problem: Recurrence) -> None:
        super().__init__(problem)
        self._d_output = self._d_output.bfloat16()

    def _call(self) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super()._call()


class HostLoop(_OnHost, Loop):
    """The loop of cells, which retains the gradient of every state; torch has no other way to get it."""

    def forward(self) -> None:
        self._states: list[tuple[Any, ...]] = []
        super().forward()

    def answers(self, compared: int) -> dict[str, Array]:
        answers = super().answers(compared)
        states = zip(("hidden", "cell"), zip(*self._states, strict=True), strict=False)
        return answers | {name: torch.stack([part.grad for part in parts]).numpy() for name, parts in states}

    def _visit(self, state: tuple[Any, ...]) -> None:
        for part in state:
            part.retain_grad()
        self._states.append(state)


ON_HOST: dict[str, Callable[[Recurrence], Layer]] = {
    "torch": HostLayer,
    "torch-bfloat16": HostBfloat16,
    "torch-loop": HostLoop,
}
ON_DEVICE: dict[str, type[Layer]] = {
    "throughtime": OurLayer,
    "cudnn": Layer,  # on a GPU, it passes the whole sequence to cuDNN
    "flashrnn": FlashRNN,
    "torch-loop": Loop,
}


def on_device(name: str, problem: Recurrence, numbers: Numbers, device: Device) -> Layer:
    """A contender's layer on a device."""
    data = device_data(problem, numbers.type, device.place)
    return ON_DEVICE[name](problem, data, getattr(torch, numbers.type))
