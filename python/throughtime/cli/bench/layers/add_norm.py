"""Add + LayerNorm on a device: ours, torch's kernels, a copy of equal size, and their float64 reference."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from .device import Device
from .dtypes import Numbers
from .problems import AddNorm

torch: Any = importlib.import_module("torch")  # by name: mypy need not have it

_INPUTS = ("x", "branch", "weight", "bias")
_SEEDS = ("d_sum", "d_normalised")


@functools.lru_cache(maxsize=3)  # the types of one problem, for all contenders
def device_data(problem: AddNorm, type: str, place: str) -> dict[str, Any]:
    """x, branch and the incoming gradients (N, F), weight and bias (F,), rounded to the type."""
    generator = torch.Generator(place).manual_seed(0)
    rows, dtype = (problem.N, problem.F), getattr(torch, type)
    shapes = {name: (problem.F,) if name in ("weight", "bias") else rows for name in (*_INPUTS, *_SEEDS)}
    return {name: torch.randn(shape, generator=generator, device=place).to(dtype) for name, shape in shapes.items()}


def reference(problem: AddNorm, type: str, device: Device, compared: int) -> dict[str, Any]:
    """The first rows in float64, with a loss on them only."""
    data = device_data(problem, type, device.place)
    wide = {name: (value if value.ndim == 1 else value[:compared]).double() for name, value in data.items()}
    inputs = [wide[name].requires_grad_() for name in _INPUTS]
    outputs = _add_norm(*inputs)
    return _named(outputs, torch.autograd.grad(outputs, inputs, [wide[name] for name in _SEEDS]))


class Block:
    """x + branch and its LayerNorm with torch's two kernels. Subclasses call another module."""

    def __init__(self, problem: AddNorm, numbers: Numbers, device: Device) -> None:
        self._data = device_data(problem, numbers.type, device.place)
        self._inputs = [self._data[name].detach().requires_grad_() for name in _INPUTS]
        self._d_outputs = [self._data[name] for name in _SEEDS]
        self._outputs: Any = None

    def forward(self) -> None:
        self._outputs = self._call()

    def backward(self) -> Any:
        """May be called repeatedly after one `forward`."""
        return torch.autograd.grad(self._outputs, self._inputs, self._d_outputs, retain_graph=True)

    def inference(self) -> Any:
        with torch.no_grad():
            return self._call()

    def answers(self, compared: int) -> dict[str, Any]:
        whole = self._d_outputs
        self._d_outputs = [torch.zeros_like(each) for each in whole]
        for cut, each in zip(self._d_outputs, whole, strict=True):
            cut[:compared] = each[:compared]
        self.forward()
        gradients = self.backward()
        self._d_outputs = whole
        return _named(self._outputs, gradients)

    def _call(self) -> Any:
        return _add_norm(*self._inputs)


class Ours(Block):
    """throughtime.torch.AddLayerNorm."""

    def __init__(self, problem: AddNorm, numbers: Numbers, device: Device) -> None:
        super().__init__(problem, numbers, device)
        made = importlib.import_module("throughtime.torch").AddLayerNorm(problem.F)
        self._module = made.to(device.place, getattr(torch, numbers.type))
        self._module.load_state_dict({name: self._data[name] for name in ("weight", "bias")})
        self._inputs[2:] = [self._module.weight, self._module.bias]

    def _call(self) -> Any:
        return self._module(*self._inputs[:2])


class Copy:
    """A copy of the bytes that either half must move: two arrays read, two written. It has no answers."""

    def __init__(self, problem: AddNorm, numbers: Numbers, device: Device) -> None:
        self.source = torch.zeros(2, problem.N, problem.F, dtype=getattr(torch, numbers.type), device=device.place)
        self._target = torch.empty_like(self.source)

    def forward(self) -> None:
        pass

    def backward(self) -> Any:
        return self._target.copy_(self.source)

    inference = backward

    def answers(self, compared: int) -> dict[str, Any]:
        return {}


def on_device(name: str, problem: AddNorm, numbers: Numbers, device: Device) -> Any:
    """A contender's block on a device."""
    made: Any = {"throughtime": Ours, "torch": Block, "copy": Copy}[name]
    return made(problem, numbers, device)


def _add_norm(x: Any, branch: Any, weight: Any, bias: Any) -> Any:
    total = x + branch
    return total, torch.nn.functional.layer_norm(total, total.shape[-1:], weight, bias)


def _named(outputs: Any, gradients: Any) -> dict[str, Any]:
    found = dict(zip(("sum", "normalised"), (output.detach() for output in outputs), strict=True))
    return found | dict(zip(_INPUTS, gradients, strict=True))
