"""Add + LayerNorm on the device: ours, torch's kernels, a copy of as many bytes, and the float64 that judges."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from .device import Device, Run
from .numbers import Numbers, torch
from .problems import FORWARD, AddNorm

_INPUTS = ("x", "branch", "weight", "bias")


@functools.lru_cache(maxsize=3)  # the types of one problem, for all contenders
def data(problem: AddNorm, type: str, place: str) -> dict[str, Any]:
    """x, branch and the incoming gradients (N, F), weight and bias (F,), rounded to the type."""
    generator = torch.Generator(place).manual_seed(0)
    N, F = problem.N, problem.F
    shapes = {"x": (N, F), "branch": (N, F), "weight": (F,), "bias": (F,), "d_sum": (N, F), "d_normalised": (N, F)}
    dtype = getattr(torch, type)
    return {name: torch.randn(shape, generator=generator, device=place).to(dtype) for name, shape in shapes.items()}


def reference(problem: AddNorm, numbers: Numbers, device: Device, count: int) -> dict[str, Any]:
    """The first `count` rows in float64, a loss on them alone."""
    given = {name: value.double() for name, value in _rows(data(problem, numbers.type, device.place), count).items()}
    inputs = [given[name].requires_grad_() for name in _INPUTS]
    outputs = _torch_forward(*inputs)
    gradients = torch.autograd.grad(outputs, inputs, (given["d_sum"], given["d_normalised"]))
    return _named(outputs, gradients)


class Block:
    """Both halves of x + branch and its LayerNorm. Subclasses call a module or function."""

    def __init__(self, problem: AddNorm, numbers: Numbers, device: Device) -> None:
        self._data = data(problem, numbers.type, device.place)
        self._inputs = [self._data[name].detach().requires_grad_() for name in _INPUTS]
        self._prepare(problem, numbers, device)

    def run(self, which: str) -> Run:
        if which == FORWARD:
            return self._forward
        outputs = self._call(*self._inputs)
        d_outputs = (self._data["d_sum"], self._data["d_normalised"])
        return lambda: torch.autograd.grad(outputs, self._inputs, d_outputs, retain_graph=True)

    def answers(self, count: int) -> dict[str, Any]:
        d_outputs = [torch.zeros_like(self._data["x"]) for _ in range(2)]
        for whole, name in zip(d_outputs, ("d_sum", "d_normalised"), strict=True):
            whole[:count] = self._data[name][:count]
        outputs = self._call(*self._inputs)
        return _named(outputs, torch.autograd.grad(outputs, self._inputs, d_outputs))

    def _forward(self) -> Any:
        with torch.no_grad():
            return self._call(*self._inputs)

    def _prepare(self, problem: AddNorm, numbers: Numbers, device: Device) -> None:
        pass

    def _call(self, x: Any, branch: Any, weight: Any, bias: Any) -> Any:
        raise NotImplementedError


class Ours(Block):
    """throughtime.torch.AddLayerNorm."""

    def _prepare(self, problem: AddNorm, numbers: Numbers, device: Device) -> None:
        made = importlib.import_module("throughtime.torch").AddLayerNorm(problem.F)
        self._module = made.to(device.place, numbers.dtype)
        self._module.load_state_dict({name: self._data[name] for name in ("weight", "bias")})
        self._inputs[2:] = [self._module.weight, self._module.bias]

    def _call(self, x: Any, branch: Any, weight: Any, bias: Any) -> Any:
        return self._module(x, branch)


class Torch(Block):
    """torch's addition, then its LayerNorm."""

    def _call(self, x: Any, branch: Any, weight: Any, bias: Any) -> Any:
        return _torch_forward(x, branch, weight, bias)


class Copy:
    """A copy of as many bytes as either half must move: two arrays read, two written. It has no answers."""

    def __init__(self, problem: AddNorm, numbers: Numbers, device: Device) -> None:
        self._source = torch.zeros(2, problem.N, problem.F, dtype=numbers.dtype, device=device.place)
        self._target = torch.empty_like(self._source)

    def run(self, which: str) -> Run:
        return lambda: self._target.copy_(self._source)

    def answers(self, count: int) -> dict[str, Any]:
        return {}


def _torch_forward(x: Any, branch: Any, weight: Any, bias: Any) -> Any:
    total = x + branch
    return total, torch.nn.functional.layer_norm(total, total.shape[-1:], weight, bias)


def _rows(given: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: value if name in ("weight", "bias") else value[:count] for name, value in given.items()}


def _named(outputs: Any, gradients: Any) -> dict[str, Any]:
    found = dict(zip(("sum", "normalised"), (output.detach() for output in outputs), strict=True))
    return found | dict(zip(_INPUTS, gradients, strict=True))
