"""The kernels of one layer and direction as XLA calls, implemented in `cpp/bindings/jax.cpp`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .. import _core
from ..backend.host import Host
from ..recurrent.architecture import Architecture
from ..recurrent.record import saved_shape
from .sharding import vary, varying_axes

for _target, _handler in _core.jax_handlers().items():
    jax.ffi.register_ffi_target(_target, _handler, platform="cpu")

Operands = Sequence[Any]
_TIMESTEPS = ("hidden", "cell", "gates")  # the gradients that the kernels can return for every timestep, in their order


@dataclass(frozen=True)
class Kind:
    """The settings of one layer and direction that are the same in every call.

    The operands of a call are, in order, x (T, B, I), lengths (B,) or (0,) if there are none, the parameters in the
    kernels' order, the initial states (B, P), (B, H), and a perturbation (T, B, ...) for each name in `timesteps`.
    """

    architecture: Architecture
    reverse: bool
    timesteps: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return len(self.architecture.parameter_names)

    @property
    def states(self) -> int:
        """The number of states."""
        return len(self.architecture.states)

    def split(self, operands: Operands) -> tuple[Operands, Operands, Operands]:
        """The common operands (x, lengths, parameters), the initial states, and the perturbations."""
        state = 2 + self.parameters
        return operands[:state], operands[state : state + self.states], operands[state + self.states :]

    @property
    def saved_axis(self) -> int:
        """The axis of B in the values that the cell saves."""
        return 1 if _core.sees_whole_rows(self.architecture.cell) else 2

    @property
    def common_axes(self) -> tuple[int | None, ...]:
        """The axis of B in each of the common operands, or None."""
        return (1, 0, *(None,) * self.parameters)


def timestep_widths(described: Architecture) -> dict[str, int]:
    """The features of each gradient that the kernels can return for every timestep, in the order of their results."""
    states = dict(zip(described.states, described.widths, strict=True))
    return {name: states.get(name, described.gate_rows) for name in _TIMESTEPS if name != "cell" or name in states}


def forward(kind: Kind, common: Operands, state: Operands, *, keep: bool) -> list[Any]:
    """Returns the output (T, B, P); then the states, (T + 2, B, P or H) with `keep`, else only the initial and the
    final one; then, with `keep`, the values that the cell saves for its backward.
    """
    x, described = common[0], kind.architecture
    steps, batch = x.shape[:2]
    shapes: list[tuple[int, ...]] = [
        (steps, batch, described.width),
        *((steps + 2 if keep else 2, batch, width) for width in described.widths),
    ]
    if keep:
        shapes.append(saved_shape(described, Host, x.dtype, steps, batch))
    return _call("throughtime_forward", kind, shapes, [*common, *state])


def backward(
    kind: Kind, common: Operands, kept: Operands, loss: Operands, *, input: bool, parameters: bool
) -> list[Any]:
    """The gradients of the initial states; then, if asked for, of x and of each parameter; then of `kind.timesteps`.

    `kept` has the results of `forward` after the output, `loss` the gradients of the output and of the final states.
    """
    x, described, steps = common[0], kind.architecture, common[0].shape[:2]
    per_step = timestep_widths(described)
    shapes = [(x.shape[1], width) for width in described.widths]
    shapes += [x.shape] if input else []
    shapes += [weight.shape for weight in common[2:]] if parameters else []
    shapes += [(*steps, per_step[name]) for name in kind.timesteps]
    asked = {f"d_{name}": name in kind.timesteps for name in _TIMESTEPS}
    return _call(
        "throughtime_backward", kind, shapes, [*common, *kept, *loss], d_input=input, d_parameters=parameters, **asked
    )


def _call(target: str, kind: Kind, shapes: Sequence[tuple[int, ...]], operands: Operands, **asked: bool) -> list[Any]:
    dtype = operands[0].dtype
    if operands[0].shape[1] == 0:  # no kernel runs without a sequence: results that are not empty are empty sums
        return vary([jnp.zeros(shape, dtype) for shape in shapes], varying_axes(*operands))
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    attributes = {"cell": kind.architecture.cell, "reverse": kind.reverse, "bias": kind.architecture.bias, **asked}

    def call(*buffers: Any) -> list[Any]:
        found = jax.ffi.ffi_call(target, results)(*buffers, **attributes)
        return vary(found, varying_axes(*buffers))  # jax assumes that results of a call are the same on all devices

    once = jax.custom_jvp(call)
    once.defjvp(_refuse)
    found: list[Any] = once(*operands)
    return found


def _refuse(primals: Operands, tangents: Operands) -> Any:
    raise NotImplementedError(
        "throughtime.jax has first derivatives in reverse mode only: no jvp, no jacfwd, no second derivatives"
    )
