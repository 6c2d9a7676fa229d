"""The values and gradients that pass between the layers of a stack.

An addition and the following LayerNorm are one kernel, even if they belong to two layers: a sum stays pending until a
layer reads it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from .. import _core
from .._arguments import Array
from .._finite import not_finite_row, raise_fault
from .._memory import with_room
from . import add_layer_norm as layer_norm
from .layer import Layer

_ERRORS = (FloatingPointError, TypeError, ValueError)
F = TypeVar("F", bound=Callable[..., Any])


class PendingSum:
    """The value between two layers: x + scale branch, added on demand or by the kernel of the next LayerNorm."""

    def __init__(self, x: Array, branch: Array | None = None, scale: float = 1.0) -> None:
        self.x, self.branch, self.scale = x, branch, scale

    @with_room
    def materialise(self) -> Array:
        if self.branch is not None:
            branch = self.branch if self.scale == 1 else self.branch * self.x.dtype.type(self.scale)
            self._is(np.add(self.x, branch, out=_core.empty(self.x.shape, self.x.dtype)))
        return self.x

    def normalise(
        self, weight: Array, bias: Array, eps: float, *, save: bool, keep_sum: bool
    ) -> tuple[Array, layer_norm.Saved | None]:
        """LayerNorm of the sum, which is lost unless `save` or `keep_sum` is set."""
        total, normalised, saved = layer_norm.forward(
            self.x, self.branch, weight, bias, self.scale, eps, keep_sum=keep_sum, save=save
        )
        if total is not None:
            self._is(total)
        return normalised, saved

    def _is(self, total: Array) -> None:
        self.x, self.branch, self.scale = total, None, 1.0


class StreamGradient(NamedTuple):
    """The gradient between two layers, and that of its branch if the next layer has computed it already."""

    total: Array
    branch: Array | None = None


class StreamLayer(Layer):
    """A layer that may take a pending sum instead of an array."""

    def _advance(self, stream: PendingSum, run: Pass) -> tuple[PendingSum, Any]:
        """The output, and the tape; None if nothing is saved."""
        raise NotImplementedError

    def _has_state(self) -> bool:
        return False


class StreamTape:
    """One forward pass of a layer that may return the gradient of a branch."""

    def _retreat(self, flow: StreamGradient, options: dict[str, Any]) -> tuple[Any, StreamGradient]:
        """The layer's gradients, and the gradient of its input."""
        raise NotImplementedError


def streamed(forward: F) -> F:
    """Mark a ``forward`` that a stack may replace by `StreamLayer._advance`. A user's override has no mark."""
    forward.__dict__["streamed"] = True
    return forward


def streams(layer: Any) -> bool:
    """Whether a stack may call `_advance` of a layer in place of its ``forward``."""
    return isinstance(layer, StreamLayer) and hasattr(type(layer).forward, "streamed")


class Pass:
    """The options of one forward pass through nested layers; each layer takes those that it accepts."""

    def __init__(
        self,
        options: dict[str, Any],
        *,
        save: bool,
        masks: Mapping[str, Array],
        valid: Array | None = None,
        batch_statistics: bool = False,
        prefix: str = "",
        state: Any = None,
    ) -> None:
        self.options, self.save, self.masks, self.prefix = options, save, masks, prefix
        self.valid = valid  # mask of the steps that are not padding
        self.training = bool(options.get("training", False))
        self.batch_statistics = batch_statistics or self.training
        self.state = state  # the initial state
        self.final_state: Any = None  # set when the layer has run, if it has a state

    def within(self, name: str, state: Any) -> Pass:
        """The options for the inner layer of this name, which starts from `state`."""
        return Pass(
            self.options,
            save=self.save,
            masks=self.masks,
            valid=self.valid,
            batch_statistics=self.batch_statistics,
            prefix=f"{self.prefix}{name}.",
            state=state,
        )

    def through(self, layer: Any, stream: PendingSum) -> tuple[PendingSum, Any]:
        """The output of the layer, and its tape, None if nothing is saved."""
        refuse_state("state", self.state, layer)
        if streams(layer):
            return cast(StreamLayer, layer)._advance(stream, self)
        x, options = stream.materialise(), {**self.options, "state": self.state}
        if not self.save:
            output = layer(x, **taken(layer.__call__, options))
            if isinstance(output, tuple):
                output, self.final_state = output
            return PendingSum(output), None
        own = {name.removeprefix(self.prefix): m for name, m in self.masks.items() if name.startswith(self.prefix)}
        tape = layer.forward(x, **taken(layer.forward, {**options, **({"masks": own} if own else {})}))
        self.final_state = getattr(tape, "final_state", None)
        return PendingSum(tape.output), tape


def back(
    tape: Any, layer: Any, flow: StreamGradient, options: dict[str, Any], d_final_state: Any
) -> tuple[Any, StreamGradient]:
    """A layer's gradients, and the gradient of its input."""
    refuse_state("d_final_state", d_final_state, layer)
    options = {**options, "d_final_state": d_final_state}
    if isinstance(tape, StreamTape):
        return tape._retreat(flow, options)
    grads = tape.backward(flow.total, **taken(tape.backward, options))
    return grads, StreamGradient(grads.input)


def fault_of(place: str, layer: Layer, tape: Any, batch_first: bool) -> str | None:
    """Where the forward of an inner layer stopped being finite, with the position of the layer."""
    own = getattr(tape, "_fault", None)
    found = output_fault(layer, tape, batch_first) if own is None else own()
    return None if found is None else f"{place} ({layer!r}): {found}"


def output_fault(layer: Layer, tape: Any, batch_first: bool) -> str | None:
    row = not_finite_row(tape.output, batch_first)
    if row is None:
        return None
    broken = broken_array(layer)
    return f"the output overflows at {row}" if broken is None else f"{broken} is not finite, nor is the output at {row}"


def broken_array(layer: Layer) -> str | None:
    """The parameter or buffer of a layer that is not finite, if any."""
    for kind, arrays in (("parameter", layer.parameters), ("buffer", layer.buffers)):
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                return f"{kind} {name}"
    return None


def check_rows(array: Array, fault: str, batch_first: bool) -> None:
    """Raise an error if a gradient is not finite."""
    row = not_finite_row(array, batch_first)
    raise_fault(None if row is None else f"{fault} at {row}")


def refuse_state(name: str, state: Any, layer: Any) -> None:
    """Raise an error if a layer without state is given one."""
    if state is not None and not has_state(layer):
        raise ValueError(f"{name} was given, but {layer!r} has none")


def has_state(layer: Any) -> bool:
    """Whether a layer, or one inside it, has a state."""
    return cast(StreamLayer, layer)._has_state() if streams(layer) else bool(taken(layer.forward, {"state": None}))


def or_none(states: Iterable[Any]) -> Any:
    """A tuple of states, or None if all are None."""
    found = tuple(states)
    return None if all(state is None for state in found) else found


def taken(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a function accepts."""
    names = parameters_of(function)
    return {name: value for name, value in options.items() if name in names}


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the parameters of a function or a method."""
    return _parameters(getattr(function, "__func__", function))


@functools.lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@contextmanager
def placed(place: str, layer: Layer) -> Iterator[None]:
    """Prefix errors with the position of the layer."""
    try:
        yield
    except _ERRORS as error:
        kind = next(kind for kind in _ERRORS if isinstance(error, kind))
        raise kind(f"{place} ({layer!r}): {error}") from error
