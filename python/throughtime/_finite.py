"""Where numbers stop being finite: the timestep, sequence, layer and direction that a NaN or infinity enters at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._arguments import Array
from ._backend import Backend, Host

if TYPE_CHECKING:
    from .tape import Tape

_AT_ONCE = 2**20  # numbers that are looked at together


class Place(NamedTuple):
    """A step of one layer and direction, and a sequence."""

    row: int  # layer and direction, in the order of h_n
    t: int
    sequence: int


def rows_finite(backend: Backend, array: Array) -> Array:
    """Of every timestep and sequence of an array (T, B, F), whether all its numbers are finite; on the host."""
    steps, batch = array.shape[:2]
    found = np.ones((steps, batch), np.bool_)
    some = max(1, _AT_ONCE // max(1, batch * array.shape[2]))
    for start in range(0, steps if batch else 0, some):
        part = array[start : start + some]
        rows = part.shape[0] * batch
        found[start : start + some] = backend.finite(part.reshape(rows, array.shape[2])).reshape(-1, batch)
    return found


def not_finite_row(array: Array, batch_first: bool) -> str | None:
    """The first timestep of an array (T, B, F), or (T, F), at which a row is not finite, and the sequence, in words."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3):
        return None
    in_time = array[:, None] if array.ndim == 2 else array.swapaxes(0, 1) if batch_first else array
    found = first_of(~rows_finite(Host, in_time), reverse=False)
    if found is None:
        return None
    return f"timestep {found[0]}" + (f", in sequence {found[1]}" if array.ndim == 3 else "")


def raise_fault(fault: str | None) -> None:
    """Raise FloatingPointError where there is a fault."""
    if fault is not None:
        raise FloatingPointError(fault)


def valid_of(tape: Tape) -> Array | None:
    """Where there is no padding, (T, B), on the host."""
    if tape._lengths is None:
        return None
    valid: Array = np.arange(tape._sizes[0])[:, None] < tape._layer._backend.on_host("lengths", tape._lengths)
    return valid


def first_of(broken: Array, *, reverse: bool) -> tuple[int, int] | None:
    """Timestep and sequence of the first true value of (T, B), in the order in which a direction goes."""
    steps = np.flatnonzero(broken.any(axis=1))
    if not steps.size:
        return None
    t = int(steps[-1] if reverse else steps[0])
    return t, int(np.flatnonzero(broken[t])[0])


def words(tape: Tape, place: Place) -> str:
    """How a place is told."""
    layer = tape._layer
    direction = ", reverse direction" if tape._is_reverse(place.row) else ""
    sequence = f", in sequence {place.sequence}" if tape._batched else ""
    return f"timestep {place.t} of layer {place.row // layer.num_directions}{direction}{sequence}"


def forward_fault(tape: Tape) -> str | None:
    """Where the forward stopped being finite and why, None where it did not.

    It is the first step, in the order in which a direction goes, of the lowest layer. A NaN or infinity of x counts
    where it stands, though a gate may hide it.
    """
    layer, of_x = tape._layer, _broken(tape, tape._inputs[0])
    for index in range(layer.num_layers * layer.num_directions):
        reverse = tape._is_reverse(index)
        first, entering = _first_state(tape, index), first_of(of_x, reverse=reverse)
        if index < layer.num_directions and entering is not None:
            t, sequence = entering
            if first is None or (first[1].t <= t if reverse else first[1].t >= t):
                return f"x is not finite at {words(tape, Place(index, t, sequence))}"
        if first is not None:
            return _cause(tape, *first)
        parameter = _parameter(tape, index)
        if parameter is not None:  # a gate hides it
            return f"parameter {parameter} is not finite"
    return None


def incoming_fault(tape: Tape, d_output: Array | None, d_final: list[Array], d_cell: Array | None) -> str | None:
    """Which incoming gradient is not finite, and where the backward meets it first; None where all are finite.

    `d_output` is (T, B, D*H), or (B, D*H) of each direction's last step; `d_final` and `d_cell` are as `backward` takes
    them.
    """
    layer, finite = tape._layer, tape._layer._backend.finite
    width, directions = layer._width, layer.num_directions
    top = (layer.num_layers - 1) * directions
    for index in (row + i for row in range(top, -1, -directions) for i in range(directions)):
        reverse, last = tape._is_reverse(index), _last_steps(tape, index)
        met = [
            (f"d_final_state{f'[{i}]' if len(d_final) > 1 else ''}", name, last & ~finite(array[index]))
            for i, (name, array) in enumerate(zip(layer._state_names, d_final, strict=True))
        ]
        if d_output is not None and index >= top:
            half = d_output[..., (index - top) * width : (index - top + 1) * width]
            broken = last & ~finite(half) if half.ndim == 2 else _broken(tape, half)
            met.insert(0, ("d_output", "hidden", broken))
        if d_cell is not None:
            met.append(("d_cell", "cell", _broken(tape, d_cell[index])))
        places = [(what, name, first_of(broken, reverse=not reverse)) for what, name, broken in met]
        found = [(place, what, name) for what, name, place in places if place is not None]
        if found:
            (t, sequence), what, name = min(found, key=lambda met: met[0][0] if reverse else -met[0][0])
            place = words(tape, Place(index, t, sequence))
            return f"{what} is not finite, and so the gradient of {name} at {place}"
    return None


def overflow(tape: Tape, index: int, gradients: Mapping[str, Array]) -> str | None:
    """Which gradient (T, B, F) of a layer and direction is the first that is not finite in the backward's order."""
    reverse = tape._is_reverse(index)
    met = [(first_of(_broken(tape, array), reverse=not reverse), name) for name, array in gradients.items()]
    found = [(place, name) for place, name in met if place is not None]
    if not found:
        return None
    (t, sequence), name = min(found, key=lambda met: met[0][0] if reverse else -met[0][0])
    return f"the gradient of {name} overflows at {words(tape, Place(index, t, sequence))}"


def first_broken(tape: Tape, index: int) -> Array:
    """Of each state and sequence (states, B), how many steps the direction took before the state was not finite.

    T where it always was. Where the tape keeps a state every so many steps, those between are computed again.
    """
    reverse, steps = tape._is_reverse(index), tape._sizes[0]
    if not tape._every:
        return np.stack([_first(_broken(tape, states[index, 1:-1]), reverse=reverse) for states in tape._states])
    first = np.full((len(tape._states), tape._sizes[1]), steps)
    kept = [rows_finite(tape._layer._backend, states[index]) for states in tape._states]
    x = None
    for row in range(1, len(kept[0])):
        if all((ok[row] | (before < steps)).all() for ok, before in zip(kept, first, strict=True)):
            continue
        if x is None:
            x = tape._upper_inputs()[index // tape._layer.num_directions]
        begin, found = (row - 1) * tape._every, _first_between(tape, index, x, row)
        first = np.where((first == steps) & (found >= 0), begin + found, first)
    return first


def _first(broken: Array, *, reverse: bool) -> Array:
    """Of each sequence of (T, B), how many steps come before the first true one; T where there is none."""
    in_order = broken[::-1] if reverse else broken
    return np.where(in_order.any(axis=0), in_order.argmax(axis=0), len(broken))


def _first_between(tape: Tape, index: int, x: Array, row: int) -> Array:
    """As `first_broken`, of the steps from the state kept in the row before this one to it, counted there; -1: none."""
    layer, reverse, (steps, batch) = tape._layer, tape._is_reverse(index), tape._sizes
    begin, end = (row - 1) * tape._every, min(row * tape._every, steps)
    times = slice(steps - end, steps - begin) if reverse else slice(begin, end)
    count, backend = end - begin, layer._backend
    states = [backend.empty((count + 2, batch, width), layer.dtype) for width in layer._state_widths]
    for array, kept in zip(states, tape._states, strict=True):
        array[count + 1 if reverse else 0] = _start(tape, kept[index, row - 1], times.stop if reverse else steps)
    problem = tape._problem(index, x[times], tape._states, 0)
    problem["states"] = dict(zip(layer._state_names, states, strict=True))
    problem["zoneout"] = {
        name: part if isinstance(part, float) else part[times] for name, part in problem["zoneout"].items()
    }
    problem["resets"] = None if tape._resets is None else tape._resets[times]
    valid = valid_of(tape)
    if valid is not None:
        problem["lengths"] = backend.sequence_lengths(valid[times].sum(axis=0), count, batch, True)
    backend.forward(layer._cell, problem)
    found = []
    for array in states:
        broken = ~rows_finite(backend, array[1:-1])
        first = _first(broken if valid is None else broken & valid[times], reverse=reverse)
        found.append(np.where(first < count, first, -1))
    return np.stack(found)


def _start(tape: Tape, kept: Array, after: int) -> Array:
    """A kept state (B, H), on the host, as steps start from it; `after` is the timestep that the reverse direction
    took last, whose reset makes that zero.
    """
    backend = tape._layer._backend
    state = backend.on_host("state", kept)
    if tape._resets is None or after >= tape._sizes[0]:
        return state
    fresh, valid = backend.on_host("resets", tape._resets)[after], valid_of(tape)
    if valid is not None:
        fresh = fresh & valid[after]
    return np.where(fresh[:, None], state.dtype.type(0), state)


def _first_state(tape: Tape, index: int) -> tuple[str, Place] | None:
    """The state of this layer and direction that stops being finite first, and where."""
    steps, batch = tape._sizes
    first = first_broken(tape, index) if batch else np.full((1, 1), steps)
    which, sequence = divmod(int(first.argmin()), first.shape[1])
    taken = int(first[which, sequence])
    if taken == steps:
        return None
    t = steps - 1 - taken if tape._is_reverse(index) else taken
    return tape._layer._state_names[which], Place(index, t, sequence)


def _last_steps(tape: Tape, index: int) -> Array:
    """Where (T, B) a direction takes the last step of a sequence."""
    valid = valid_of(tape)
    return last_of(np.ones(tape._sizes, np.bool_) if valid is None else valid, tape._is_reverse(index))


def last_of(valid: Array, reverse: bool) -> Array:
    """Where `valid` (T, B) has the last step that a direction takes in each sequence."""
    last = valid.copy()
    if reverse:
        last[1:] = False
    else:
        last[:-1] &= ~last[1:]
    return last


def _cause(tape: Tape, name: str, place: Place) -> str:
    """What made this state, the first of all, not finite."""
    layer, backend = tape._layer, tape._layer._backend
    after = f"and so {name} at {words(tape, place)}"
    for state, array in zip(layer._state_names, tape._states, strict=True):
        initial = array[place.row, tape._initial_row(place.row, tape._every)]
        if not backend.finite(initial)[place.sequence]:
            return f"the initial {state} state is not finite, {after}"
    parameter = _parameter(tape, place.row)
    if parameter is not None:
        return f"parameter {parameter} is not finite, {after}"
    return f"{name} overflows at {words(tape, place)}"


def _parameter(tape: Tape, index: int) -> str | None:
    """The first parameter of a layer and direction that is not finite."""
    layer = tape._layer
    for name in (own + layer._suffixes[index] for own in layer._parameter_names):
        if not layer._backend.finite(tape._parameters[name][None]).all():
            return name
    return None


def _broken(tape: Tape, array: Array) -> Array:
    """Where an array (T, B, F) is not finite, padding left out."""
    broken, valid = ~rows_finite(tape._layer._backend, array), valid_of(tape)
    return broken if valid is None else broken & valid
