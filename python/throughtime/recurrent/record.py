"""The record of a forward pass: the arrays that its backward reads, and their layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _core
from .._arguments import Array
from .._memory import writable
from ..backend.protocol import Backend
from .architecture import Architecture
from .arguments import Inputs, time_major

if TYPE_CHECKING:
    from .._core import RecurrentProblem

State: TypeAlias = Any  # one array, or a tuple of two for the LSTM; a union would force every caller to check


@dataclass(slots=True)
class Record:
    """The settings and arrays of one forward pass. An index is that of a layer and direction.

    Attributes
    ----------
    sizes : (int, int)
        T and B.
    batched : bool
        Whether the caller's arrays have a batch axis.
    memory : str, int or None
        As ``layer.forward`` takes it; None for inference, which keeps only its results.
    every : int
        Steps from one stored state to the next; 0 if every state is stored. See cpp/cpu/recurrent/history.hpp.
    parameters : dict of str to array
        Copies, with weight dropout applied.
    masks : dict of str to array
        Batched.
    states : list of (L*D, T + 2, B, width) arrays
        One array for each state of the cell. If `every` is not 0, it has only the stored states.
    saved : list of array or None
        By index, the values that the cell saves for its backward; None unless ``memory="full"``.
    inputs : list of (T, B, F) arrays
        The input of every layer. Only the first one if the others are recomputed; none for inference.
    terms : int, optional
        Precision of the products: the number of bfloat16 terms that a float32 is split into. None: the process default.
    output : array, optional
        In the caller's layout.
    final_state : list of (L*D, B, width) arrays
    """

    architecture: Architecture
    backend: Backend
    dtype: Any
    sizes: tuple[int, int]
    batched: bool
    memory: str | int | None
    every: int
    lengths: Array | None
    resets: Array | None
    parameters: dict[str, Array]
    masks: dict[str, Array]
    terms: int | None = None
    states: list[Array] = field(default_factory=list)
    saved: Sequence[Array | None] = ()
    inputs: list[Array] = field(default_factory=list)
    output: Array | None = None
    final_state: list[Array] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        backend: Backend,
        inputs: Inputs,
        parameters: dict[str, Array],
        masks: dict[str, Array],
        memory: str | int | None,
        terms: int | None = None,
    ) -> Record:
        """A record before its forward."""
        if architecture.weight_dropout and masks:
            probability, dropped = architecture.weight_dropout, parameters.keys() & masks.keys()
            parameters = {
                name: backend.dropped(array, masks[name], probability) if name in dropped else array
                for name, array in parameters.items()
            }
        x = inputs.x
        sizes = (x.shape[0], x.shape[1])
        every = steps_between(memory, sizes[0])
        return cls(
            architecture,
            backend,
            x.dtype,
            sizes,
            inputs.batched,
            memory,
            every,
            inputs.lengths,
            inputs.resets,
            parameters,
            masks,
            terms,
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: arrays that are views of others are left out."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "states": self.kept(), "saved": (), "inputs": self.inputs[:1]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in writable(state).items():
            setattr(self, name, value)
        if self.inputs:
            self.restore(self.inputs[0], self.states)

    def restore(self, x: Array, kept: Iterable[Array]) -> None:
        """Restore the arrays from :meth:`kept` of another record, for a backward without a forward."""
        described, rest = self.architecture, iter(kept)
        self.states = [next(rest) for _ in described.states]
        self.saved = [next(rest) if self.memory == "full" else None for _ in range(described.count)]
        self.inputs = [x]
        for layer in range(1, 1 if self.every else described.num_layers):
            self.inputs.append(self.states[0][layer - 1, 1:-1] if self.reads_states(layer) else next(rest))

    def kept(self) -> list[Array]:
        """The arrays that the backward reads in addition to x, parameters and masks, in the order of `kept_shapes`."""
        own = [array for layer, array in enumerate(self.inputs) if layer and not self.reads_states(layer)]
        for array in self.states if not self.every else ():
            for index in range(len(array)):  # no kernel writes this row; results must depend on the arguments alone
                array[index, self.sizes[0] + 1 - self.initial_row(index)] = 0
        return [*self.states, *(array for array in self.saved if array is not None), *own]

    def reads_states(self, layer: int) -> bool:
        """Whether this layer, not the first, reads the states of the layer below as its input, without a copy."""
        return self.architecture.num_directions == 1 and not self.every and f"dropout_l{layer - 1}" not in self.masks

    # The kernels' problem

    def problem(self, index: int, x: Array, states: list[Array], every: int) -> RecurrentProblem:
        """The kernels' problem for one layer and direction, with these stored states."""
        described, parameters = self.architecture, self.parameters
        return {
            "parameters": {name: parameters[full] for name, full in described.own_parameters[index].items()},
            "states": {name: array[index] for name, array in zip(described.states, states, strict=True)},
            "every": every,
            "x": x,
            "reverse": described.goes_back[index],
            "lengths": self.lengths,
            "resets": self.resets,
            "saved": self.saved[index],
            "zoneout": self._zoneout(index) if self.masks else described.zoneouts,
            "terms": self.terms,
        }

    def _zoneout(self, index: int) -> dict[str, Any]:
        described = self.architecture
        return {
            name: self.masks.get(described.zoneout_mask(name, index), probability)
            for name, probability in described.zoneouts.items()
        }

    def initial_row(self, index: int, every: int | None = None) -> int:
        """The row of the initial state among the stored ones."""
        kept = self.every if every is None else every
        return self.sizes[0] + 1 if not kept and self.architecture.goes_back[index] else 0

    def new_states(self, every: int, initial: Sequence[Array | None]) -> list[Array]:
        """New arrays for the stored states, with the initial ones filled in."""
        described = self.architecture
        shapes = state_shapes(described, *self.sizes, every)
        states = [self.backend.empty(shape, self.dtype) for shape in shapes]
        for array, start in zip(states, initial, strict=True):
            for index in range(described.count):
                array[index, self.initial_row(index, every)] = 0 if start is None else start[index]
        return states

    def new_saved(self) -> list[Array | None]:
        """New arrays for the values that the cells save."""
        described = self.architecture
        if self.memory != "full":
            return [None] * described.count
        shape = saved_shape(described, self.backend, self.dtype, *self.sizes)
        return [self.backend.empty(shape, self.dtype) for _ in range(described.count)]

    def saved_units(self, index: int) -> Array:
        """The values that the cell saved, (T, B, values, H)."""
        saved, (steps, batch) = self.saved[index], self.sizes
        assert saved is not None
        by_sequence = saved if _core.sees_whole_rows(self.architecture.cell) else saved.swapaxes(1, 2)
        by_value = by_sequence.swapaxes(2, 3)
        units = by_value.shape[3] * by_value.shape[4]  # not -1, which is ambiguous without sequences
        values = by_value.reshape(steps, batch, saved.shape[3], units)
        return values[..., : self.architecture.hidden_size]

    def valid(self) -> Array | None:
        """Mask of the steps that are not padding, (T, B), on the host; None without lengths."""
        if self.lengths is None:
            return None
        valid: Array = np.arange(self.sizes[0])[:, None] < self.backend.on_host("lengths", self.lengths)
        return valid

    def drop(self, layer: int, array: Array) -> Array:
        """Dropout above this layer, or its gradient: the same function of the mask."""
        mask = self.masks.get(f"dropout_l{layer}") if self.masks else None
        return array if mask is None else self.backend.dropped(array, mask, self.architecture.dropout)

    # The caller's layout

    def unbatch(self, array: Array, axis: int) -> Array:
        """The array without its batch axis if the caller's arrays have none."""
        return array if self.batched else array.squeeze(axis)

    def user_layout(self, array: Array) -> Array:
        """A (T, B, F) array as the caller sees it."""
        return time_major(array, True, self.architecture.batch_first) if self.batched else array[:, 0]

    def new_layout(self, features: int) -> Array:
        """A new (T, B, F) array whose memory is in the caller's layout."""
        steps, batch = self.sizes
        if self.architecture.batch_first and self.batched:
            return self.backend.empty((batch, steps, features), self.dtype).swapaxes(0, 1)
        return self.backend.empty((steps, batch, features), self.dtype)

    def as_state(self, arrays: list[Array]) -> State:
        """The arrays of the states in the caller's form: one array, or a tuple."""
        if not self.batched:
            arrays = [array.squeeze(1) for array in arrays]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)


def kept_shapes(
    architecture: Architecture, backend: Backend, dtype: Any, sizes: tuple[int, int], masks: Iterable[str], memory: Any
) -> list[tuple[int, ...]]:
    """The shapes of the arrays of :meth:`Record.kept`: states, saved values, inputs of the upper layers."""
    every = steps_between(memory, sizes[0])
    shapes = state_shapes(architecture, *sizes, every)
    if memory == "full":
        shapes += [saved_shape(architecture, backend, dtype, *sizes)] * architecture.count
    for layer in range(0 if every else architecture.num_layers - 1):
        if architecture.num_directions > 1 or f"dropout_l{layer}" in masks:
            shapes.append((*sizes, architecture.output_size))
    return shapes


def state_shapes(architecture: Architecture, steps: int, batch: int, every: int) -> list[tuple[int, ...]]:
    """The shapes of the stored states, `every` steps apart (0: all of them), one array for each state of the cell."""
    rows = (steps - 1) // every + 2 if every else steps + 2
    return [(architecture.count, rows, batch, width) for width in architecture.widths]


def saved_shape(architecture: Architecture, backend: Backend, dtype: Any, steps: int, batch: int) -> tuple[int, ...]:
    """The shape of the values that the cell of one layer and direction saves."""
    return (steps, *backend.saved_shape(architecture.cell, dtype, batch, architecture.hidden_size))


def steps_between(memory: str | int | None, steps: int) -> int:
    """Steps from one stored state to the next, 0 if all are stored; inference stores the first and the last."""
    if memory is None:
        return steps
    if isinstance(memory, int):
        return min(memory, steps)
    return math.isqrt(steps - 1) + 1 if memory == "checkpoint" else 0
