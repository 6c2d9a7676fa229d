"""Find the timestep, sequence, layer and direction at which the first NaN or infinity occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .._arguments import Array
from .._finite import first_of, last_of, rows_finite
from .forward import upper_inputs
from .record import Record


class Place(NamedTuple):
    """A timestep of one layer and direction in one sequence."""

    row: int  # layer and direction, in the order of h_n
    t: int
    sequence: int


def words(record: Record, place: Place) -> str:
    """The place in words, for messages."""
    described = record.architecture
    direction = ", reverse direction" if described.goes_back[place.row] else ""
    sequence = f", in sequence {place.sequence}" if record.batched else ""
    return f"timestep {place.t} of layer {place.row // described.num_directions}{direction}{sequence}"


def forward_fault(record: Record) -> str | None:
    """Where the forward stopped being finite and why; None if it did not.

    Names the first such step, in the direction's order, of the lowest such layer. A NaN or infinity in x is reported at
    its own place even if a gate hides it.
    """
    described, of_x = record.architecture, _broken(record, record.inputs[0])
    for index in range(described.count):
        reverse = described.goes_back[index]
        first, entering = _first_state(record, index), first_of(of_x, reverse=reverse)
        if index < described.num_directions and entering is not None:
            t, sequence = entering
            if first is None or (first[1].t <= t if reverse else first[1].t >= t):
                return f"x is not finite at {words(record, Place(index, t, sequence))}"
        if first is not None:
            return _cause(record, *first)
        parameter = _parameter(record, index)
        if parameter is not None:  # a gate hides it
            return f"parameter {parameter} is not finite"
    return None


def incoming_fault(
    record: Record, d_output: Array | None, d_final: Sequence[Array | None], d_cell: Array | None
) -> str | None:
    """The first incoming gradient that is not finite, and where the backward meets it; None if all are finite.

    `d_output` is (T, B, D*H), or (B, D*H) for each direction's last step; `d_final` and `d_cell` are as for `backward`.
    """
    described, finite = record.architecture, record.backend.finite
    width, directions = described.width, described.num_directions
    top = (described.num_layers - 1) * directions
    for index in (row + i for row in range(top, -1, -directions) for i in range(directions)):
        reverse, last = described.goes_back[index], _last_steps(record, index)
        met = [
            (f"d_final_state{f'[{i}]' if len(d_final) > 1 else ''}", name, last & ~finite(array[index]))
            for i, (name, array) in enumerate(zip(described.states, d_final, strict=True))
            if array is not None
        ]
        if d_output is not None and index >= top:
            half = d_output[..., (index - top) * width : (index - top + 1) * width]
            broken = last & ~finite(half) if half.ndim == 2 else _broken(record, half)
            met.insert(0, ("d_output", "hidden", broken))
        if d_cell is not None:
            met.append(("d_cell", "cell", _broken(record, d_cell[index])))
        places = [(what, name, first_of(broken, reverse=not reverse)) for what, name, broken in met]
        found = [(place, what, name) for what, name, place in places if place is not None]
        if found:
            (t, sequence), what, name = min(found, key=lambda met: met[0][0] if reverse else -met[0][0])
            place = words(record, Place(index, t, sequence))
            return f"{what} is not finite, and so the gradient of {name} at {place}"
    return None


def overflow(record: Record, index: int, gradients: Mapping[str, Array]) -> str | None:
    """The first gradient (T, B, F) of a layer and direction, in backward order, that is not finite; None if all are."""
    reverse = record.architecture.goes_back[index]
    met = [(first_of(_broken(record, array), reverse=not reverse), name) for name, array in gradients.items()]
    found = [(place, name) for place, name in met if place is not None]
    if not found:
        return None
    (t, sequence), name = min(found, key=lambda met: met[0][0] if reverse else -met[0][0])
    return f"the gradient of {name} overflows at {words(record, Place(index, t, sequence))}"


def first_broken(record: Record, index: int) -> Array:
    """For each state and sequence (states, B), the number of steps before the state is not finite; T if it always is.

    If the record stores only every k-th state, those between are recomputed.
    """
    reverse, steps = record.architecture.goes_back[index], record.sizes[0]
    if not record.every:
        return np.stack([_first(_broken(record, states[index, 1:-1]), reverse=reverse) for states in record.states])
    first = np.full((len(record.states), record.sizes[1]), steps)
    kept = [rows_finite(record.backend, states[index]) for states in record.states]
    x = None
    for row in range(1, len(kept[0])):
        if all((ok[row] | (before < steps)).all() for ok, before in zip(kept, first, strict=True)):
            continue
        if x is None:
            x = upper_inputs(record)[index // record.architecture.num_directions]
        begin, found = (row - 1) * record.every, _first_between(record, index, x, row)
        first = np.where((first == steps) & (found >= 0), begin + found, first)
    return first


def _first(broken: Array, *, reverse: bool) -> Array:
    """For each sequence of (T, B), the number of steps before the first true one; T if there is none."""
    in_order = broken[::-1] if reverse else broken
    return np.where(in_order.any(axis=0), in_order.argmax(axis=0), len(broken))


def _first_between(record: Record, index: int, x: Array, row: int) -> Array:
    """As `first_broken`, for the steps between stored states `row - 1` and `row`, counted from the former; -1: none."""
    described, reverse, (steps, batch) = record.architecture, record.architecture.goes_back[index], record.sizes
    begin, end = (row - 1) * record.every, min(row * record.every, steps)
    times = slice(steps - end, steps - begin) if reverse else slice(begin, end)
    count, backend = end - begin, record.backend
    states = [backend.empty((count + 2, batch, width), record.dtype) for width in described.widths]
    for array, kept in zip(states, record.states, strict=True):
        array[count + 1 if reverse else 0] = _start(record, kept[index, row - 1], times.stop if reverse else steps)
    problem = record.problem(index, x[times], record.states, 0)
    problem["states"] = dict(zip(described.states, states, strict=True))
    problem["zoneout"] = {
        name: part if isinstance(part, float) else part[times] for name, part in problem["zoneout"].items()
    }
    problem["resets"] = None if record.resets is None else record.resets[times]
    valid = record.valid()
    if valid is not None:
        problem["lengths"] = backend.sequence_lengths(valid[times].sum(axis=0), count, batch, True)
    backend.forward(described.cell, problem)
    found = []
    for array in states:
        broken = ~rows_finite(backend, array[1:-1])
        first = _first(broken if valid is None else broken & valid[times], reverse=reverse)
        found.append(np.where(first < count, first, -1))
    return np.stack(found)


def _start(record: Record, kept: Array, after: int) -> Array:
    """A stored state (B, H), on the host, from which steps continue. `after` is the last timestep of the reverse
    direction before it; a reset there makes the state zero.
    """
    backend = record.backend
    state = backend.on_host("state", kept)
    if record.resets is None or after >= record.sizes[0]:
        return state
    fresh, valid = backend.on_host("resets", record.resets)[after], record.valid()
    if valid is not None:
        fresh = fresh & valid[after]
    return np.where(fresh[:, None], state.dtype.type(0), state)


def _first_state(record: Record, index: int) -> tuple[str, Place] | None:
    """The state of this layer and direction that first stops being finite, and where; None if all are finite."""
    steps, batch = record.sizes
    first = first_broken(record, index) if batch else np.full((1, 1), steps)
    which, sequence = divmod(int(first.argmin()), first.shape[1])
    taken = int(first[which, sequence])
    if taken == steps:
        return None
    t = steps - 1 - taken if record.architecture.goes_back[index] else taken
    return record.architecture.states[which], Place(index, t, sequence)


def _last_steps(record: Record, index: int) -> Array:
    """Mask (T, B) of the last step of a direction in each sequence."""
    valid = record.valid()
    return last_of(np.ones(record.sizes, np.bool_) if valid is None else valid, record.architecture.goes_back[index])


def _cause(record: Record, name: str, place: Place) -> str:
    """Why this state, the first of all, is not finite."""
    described, backend = record.architecture, record.backend
    after = f"and so {name} at {words(record, place)}"
    for state, array in zip(described.states, record.states, strict=True):
        initial = array[place.row, record.initial_row(place.row)]
        if not backend.finite(initial)[place.sequence]:
            return f"the initial {state} state is not finite, {after}"
    parameter = _parameter(record, place.row)
    if parameter is not None:
        return f"parameter {parameter} is not finite, {after}"
    return f"{name} overflows at {words(record, place)}"


def _parameter(record: Record, index: int) -> str | None:
    """The first parameter of a layer and direction that is not finite, or None."""
    for name in record.architecture.own_parameters[index].values():
        if not record.backend.finite(record.parameters[name][None]).all():
            return name
    return None


def _broken(record: Record, array: Array) -> Array:
    """Mask (T, B) of the rows of an array (T, B, F) that are not finite, without padding."""
    broken, valid = ~rows_finite(record.backend, array), record.valid()
    return broken if valid is None else broken & valid
