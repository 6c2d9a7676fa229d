"""The joint state of a recurrent layer: its trajectory, and one step as a function of it, with the Jacobian."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._arguments import Array, contiguous
from ..backend.choose import require_host
from ..backend.host import Host
from ..recurrent import Recurrent
from ..recurrent.architecture import Architecture
from ..recurrent.arguments import Checks, time_major
from ..recurrent.backward import Asked, Loss, run_backward

_BLOCK_BYTES = 1 << 25  # memory of the kernels' arrays for one block of steps


def check_recurrent(what: str, layer: Any) -> None:
    """Raise unless the layer is recurrent and on the CPU; `what`, in the error, needs that."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be an RNN, GRU or LSTM, got {type(layer).__name__}")
    require_host(what, layer.device)


def step_numbers(described: Architecture) -> int:
    """About as many numbers as a forward of one step of one sequence writes; a backward writes as many."""
    return described.input_size + described.count * (described.gates + 4) * described.hidden_size


def check_layer(layer: Any) -> None:
    """Raise unless the Jacobian of the layer's state is defined and can be computed."""
    check_recurrent("the state's Jacobian", layer)
    if layer.bidirectional or layer.reverse:
        raise ValueError(f"layer must have one direction, forward in time, got {layer!r}")


class StepMap:
    """One step of a layer, in float64: a function of the input (m, I) and of the joint state (m, N) before the step.

    The joint state is h of all layers, from the first to the last, then, for the LSTM, c of all layers.

    Attributes
    ----------
    width : int
        N.
    """

    def __init__(self, layer: Recurrent) -> None:
        self._layer = layer.astype("float64")
        described = layer.architecture
        self._sizes = [described.num_layers * width for width in described.widths]
        self.width = sum(self._sizes)
        self._row_bytes = 8 * 2 * (step_numbers(described) + self.width)

    @property
    def at_once(self) -> int:
        """The number of Jacobians that one call of the kernels computes."""
        return max(1, _BLOCK_BYTES // (self.width * self._row_bytes))

    def states(self, joint: Array) -> list[Array]:
        """Joint states (m, N) as the layer's own (L, m, H), one array for each state of the cell."""
        shape = len(joint), self._layer.num_layers
        parts = np.split(joint, np.cumsum(self._sizes)[:-1], axis=1)
        widths = self._layer.architecture.widths
        return [
            contiguous(part.reshape(*shape, width).swapaxes(0, 1)) for part, width in zip(parts, widths, strict=True)
        ]

    def joint(self, states: list[Array]) -> Array:
        """The inverse of `states`."""
        parts = [
            array.swapaxes(0, 1).reshape(array.shape[1], size) for array, size in zip(states, self._sizes, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def after(self, x: Array, joint: Array) -> Array:
        """The joint states after the step."""
        _, final = self._layer(self._one_step(x), as_state(self.states(joint)))
        return self.joint(list(final) if isinstance(final, tuple) else [final])

    def fill_jacobians(self, x: Array, joint: Array, jacobians: Array) -> None:
        """Fill `jacobians` (m, N, N) with the derivatives of the states after the step by those before it."""
        for begin in range(0, len(x), self.at_once):
            rows = slice(begin, begin + self.at_once)
            self._fill_block(x[rows], joint[rows], jacobians[rows])

    def _fill_block(self, x: Array, joint: Array, jacobians: Array) -> None:
        """The batch holds each step N times, as sequences of length 1. Row n of a Jacobian is the gradient of entry n
        of the state after the step, so `d_final_state` is the n-th unit vector.
        """
        seeds = self.states(np.tile(np.eye(self.width), (len(x), 1)))
        before = [np.repeat(array, self.width, axis=1) for array in self.states(joint)]
        tape = self._layer.forward(
            self._one_step(np.repeat(x, self.width, axis=0)), as_state(before), training=False, output="last"
        )
        found = run_backward(tape.record, Loss(d_final_state=seeds), Asked(input=False, parameters=frozenset()))
        parts = found.initial_state if isinstance(found.initial_state, tuple) else (found.initial_state,)
        jacobians[...] = self.joint(list(parts)).reshape(jacobians.shape)

    def _one_step(self, x: Array) -> Array:
        """Inputs (m, I) as a batch of sequences of length 1, in the layer's layout."""
        return time_major(x[None], True, self._layer.batch_first)


class Trajectory:
    """The joint states of a layer driven by x, in inference mode, and the Jacobians along them.

    Attributes
    ----------
    step : StepMap
    batched : bool
        Whether the caller's x has a batch axis.
    """

    def __init__(self, layer: Any, x: Any, state: Any) -> None:
        check_layer(layer)
        checks = Checks(layer.architecture, Host, layer.dtype)
        self._layer = layer
        self._own_x, self.batched = checks.x(x)
        shapes = [(layer.num_layers, self.batch, width) for width in layer.architecture.widths]
        self._initial = [
            np.zeros(shape, layer.dtype) if array is None else array
            for shape, array in zip(shapes, checks.state("state", state, self.batch, self.batched), strict=True)
        ]
        self.step = StepMap(layer)

    @property
    def steps(self) -> int:
        """T."""
        return len(self._own_x)

    @property
    def batch(self) -> int:
        """B."""
        return int(self._own_x.shape[1])

    def jacobians(self, start: int = 0, stop: int | None = None) -> Iterator[Array]:
        """Yield d state_t / d state_{t-1}, (B, N, N), for the steps from `start` to before `stop`."""
        x = self._own_x[:stop]
        states = self._states(x)
        block = max(1, self.step.at_once // max(1, self.batch))
        for begin in range(start, len(x), block):
            steps = slice(begin, min(begin + block, len(x)))
            found = np.empty((steps.stop - begin, self.batch, self.step.width, self.step.width))
            self._fill(x[steps], states[steps], found, begin)
            yield from found

    def _fill(self, x: Array, states: Array, jacobians: Array, begin: int) -> None:
        """Fill the Jacobians (m, B, N, N) of m steps, of which the first is number `begin`."""
        inputs = x.astype(np.float64).reshape(len(x) * self.batch, x.shape[2])
        each = jacobians.reshape(len(inputs), *jacobians.shape[2:])
        self.step.fill_jacobians(inputs, states.reshape(len(inputs), self.step.width), each)
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(np.abs(each).sum(axis=(1, 2)))
        if bad.any():
            t, b = divmod(int(bad.argmax()), self.batch)
            raise FloatingPointError(
                f"the Jacobian of the state after {begin + t + 1} steps{self._of(b)} by the one before is not finite"
            )

    def _states(self, x: Array) -> Array:
        """All joint states, the initial one first: (T + 1, B, N) float64."""
        own = time_major(x, True, self._layer.batch_first)
        tape = self._layer.forward(own, as_state(self._initial), training=False, output="last", memory="states")
        rows = (len(x) + 1) * self.batch
        each = [array[:, :-1].reshape(len(array), rows, array.shape[3]) for array in tape.record.states]
        joint = self.step.joint(each).reshape(len(x) + 1, self.batch, self.step.width)
        bad = ~np.isfinite(joint).all(axis=2)
        if bad.any():
            t, b = divmod(int(bad.argmax()), self.batch)
            raise FloatingPointError(f"the state is not finite after {t} steps{self._of(b)}")
        return joint.astype(np.float64, copy=False)

    def _of(self, sequence: int) -> str:
        return f" in sequence {sequence}" if self.batch > 1 else ""


def as_state(arrays: list[Array]) -> Any:
    """Arrays of states as a layer takes them: one array, or a tuple."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)
