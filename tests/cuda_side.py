"""Problems of one layer on the CUDA backend, through its bindings: what `conftest.run` gives, from `_cuda`."""

from __future__ import annotations

import numpy as np

from stand_in import load_cuda
from throughtime.backend.host import Host
from throughtime.recurrent.record import steps_between

# Significant bits
BITS = {"float32": 24, "bfloat16": 8, "float16": 11}


def rounded(values, type_):
    """float32 arrays with the values to which a tensor type rounds; of arrays alone, in tuples and in dicts."""
    if isinstance(values, dict):
        return {name: rounded(value, type_) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(rounded(value, type_) for value in values)
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return values
    return _values(_bits(values, type_), type_)


def _bits(values, type_):
    values = np.ascontiguousarray(values, np.float32)
    if type_ == "float32":
        return values
    if type_ == "float16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    nearest = ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), nearest)


def _values(bits, type_):
    if type_ == "float32":
        return bits
    if type_ == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Device:
    """Arrays of a tensor type in the device's memory."""

    def __init__(self, type_):
        self.type, self.cuda = type_, load_cuda()
        self.dtype = np.dtype(np.float32 if type_ == "float32" else np.uint16)

    def empty(self, shape, dtype=None):
        return self.cuda.empty(shape, np.dtype(dtype or self.dtype), 0)

    def put(self, values):
        """A copy on the device; numbers in the tensor type."""
        if values is None:
            return None
        values = _bits(values, self.type) if values.dtype.kind == "f" else np.ascontiguousarray(values)
        there = self.empty(values.shape, values.dtype)
        self._copy(there, values)
        return there

    def put_rows(self, values, batch_first):
        """A (T, B, F) array, in memory perhaps (B, T, F)."""
        return self.put(values.swapaxes(0, 1)).swapaxes(0, 1) if batch_first else self.put(values)

    def empty_rows(self, shape, batch_first):
        T, B, F = shape
        return self.empty((B, T, F)).swapaxes(0, 1) if batch_first else self.empty(shape)

    def get(self, array):
        """What a whole array on the device holds."""
        here = np.empty_like(array)
        self._copy(here, array)
        return _values(here, self.type) if array.dtype == self.dtype else here

    def _copy(self, to, source):
        if self.cuda.is_stand_in:
            to[...] = source
        else:
            self.cuda.copy_bytes(to, source, 0)
            self.cuda.synchronise(0)


class Tape:
    """One layer of one or two directions, forward; `call` are entries of the bindings' problem."""

    def __init__(self, problem, options=None, *, type_="float32", memory="full", batch_first=False, x=None, **call):
        assert problem.L == 1
        options = options or {}
        self.problem, self.device, self.memory, self.batch_first = problem, Device(type_), memory, batch_first
        self.layer = problem.layer()
        self.every = steps_between(memory, problem.T)
        self.masks = options.get("masks", {})
        self.x = self.device.put_rows(problem.x if x is None else x, batch_first)
        self.parameters = {name: self.device.put(self._drop(name, value)) for name, value in problem.parameters.items()}
        raw = {"lengths": options.get("lengths"), "resets": options.get("resets")}
        self.call = {name: self.device.put(value) for name, value in raw.items()} | {"type": type_, **call}
        self.zoneout = {name: self.device.put(mask) for name, mask in self.masks.items() if name.startswith("zoneout")}
        T, B, H = problem.T, problem.B, problem.H
        self.widths = (problem.width, H)[: len(self.layer.architecture.states)]
        self.states = [self._new_states(s, width, options) for s, width in enumerate(self.widths)]
        shape = (T, B, *self.device.cuda.saved_shape(self.layer.architecture.cell, H))
        self.saved = [self.device.empty(shape) if memory == "full" else None for _ in range(problem.D)]
        self.output = self.device.empty_rows((T, B, problem.D * problem.width), batch_first)
        for d in range(problem.D):
            given = self._given(d) | {"output": self._side(self.output, d)}
            self.device.cuda.forward(self.layer.architecture.cell, given)

    def _drop(self, name, value):
        return Host.dropped(value, self.masks[name], self.problem.weight_dropout) if name in self.masks else value

    def _new_states(self, s, width, options):
        """Of each direction, with the initial one in its place; NaN elsewhere."""
        problem, T = self.problem, self.problem.T
        rows = (T - 1) // self.every + 2 if self.every else T + 2
        states = np.full((problem.D, rows, problem.B, width), np.nan, np.float32)
        given = options.get("state")
        initial = (
            np.zeros((problem.D, problem.B, width)) if given is None else (given if len(self.widths) == 1 else given[s])
        )
        for d in range(problem.D):
            states[d, T + 1 if d and not self.every else 0] = initial[d]
        return [self.device.put(of_direction) for of_direction in states]

    def _side(self, array, d):
        return array[:, :, d * self.problem.width : (d + 1) * self.problem.width]

    def _given(self, d):
        suffix, names = self.problem.suffixes[d], self.layer.architecture.states
        given = {name.removesuffix(suffix): p for name, p in self.parameters.items() if name.endswith(suffix)}
        zoneout = self.layer.architecture.zoneouts.items()
        return {
            "parameters": {name: p for name, p in given.items() if "_reverse" not in name},
            "states": {name: self.states[s][d] for s, name in enumerate(names)},
            "x": self.x,
            "every": self.every,
            "reverse": d == 1,
            "saved": self.saved[d],
            "zoneout": {name: self.zoneout.get(f"zoneout_{name[0]}{suffix}", p) for name, p in zoneout},
            "stream": 0,
            **self.call,
        }

    def results(self):
        """By name, as conftest.results has them."""
        T, names = self.problem.T, ("tape.hidden", "tape.cell")
        states = [np.stack([self.device.get(of_direction) for of_direction in state]) for state in self.states]
        last = [-1, -1] if self.every else [T, 1]
        final = tuple(np.stack([state[d, last[d]] for d in range(self.problem.D)]) for state in states)
        found = {"output": self._get_rows(self.output), "final_state": final if len(final) == 2 else final[0]}
        if not self.every:
            found |= {name: state[:, 1:-1] for name, state in zip(names, states, strict=False)}
        return found

    def _get_rows(self, array):
        return self.device.get(array.swapaxes(0, 1)).swapaxes(0, 1) if self.batch_first else self.device.get(array)

    def backward(
        self, loss=None, truncate=None, clip=None, wants=("input", "parameters", "initial_state", "timesteps")
    ):
        """The gradients of a loss, by name; of those that are wanted."""
        problem, device, D = self.problem, self.device, self.problem.D
        loss = problem.loss if loss is None else loss
        T, B = problem.T, problem.B
        d_output = loss.get("d_output")
        d_output = None if d_output is None else device.put_rows(d_output, self.batch_first)
        final = loss.get("d_final_state")
        final = () if final is None else (final if len(self.widths) == 2 else (final,))
        names = self.layer.architecture.states
        found = [self._room(d, wants, clip) for d in range(D)]
        d_input = device.empty_rows((T, B, problem.I), self.batch_first) if "input" in wants else None
        for d, room in enumerate(found):
            ends = {name: device.put(of[d]) for name, of in zip(names, final, strict=False) if of is not None}
            d_cell = loss.get("d_cell")
            dropped = self.masks.get("weight_hh" + problem.suffixes[d])
            given = {
                **room,
                "truncate": truncate,
                "clip": clip,
                "d_output": None if d_output is None else self._side(d_output, d),
                "d_cell": None if d_cell is None else device.put(d_cell[d]),
                "d_final_state": ends,
                "d_input": d_input,
                "add_to_input": d > 0,
                "dropped": None if dropped is None else device.put(dropped),
            }
            device.cuda.backward(self.layer.architecture.cell, self._given(d), given)
        return self._gathered(found, d_input, wants, clip)

    def _room(self, d, wants, clip):
        """What the kernels fill for one direction."""
        problem, empty = self.problem, self.device.empty
        T, B, H = problem.T, problem.B, problem.H
        suffix, names = problem.suffixes[d], self.layer.architecture.states
        own = {n.removesuffix(suffix): p for n, p in self.parameters.items() if n.endswith(suffix)}
        room = {"clipped": empty((T, B), bool)} if clip else {}
        if "parameters" in wants:
            room["d_parameters"] = {name: empty(p.shape) for name, p in own.items() if "_reverse" not in name}
        if "initial_state" in wants:
            room["d_initial_state"] = {n: empty((B, w)) for n, w in zip(names, self.widths, strict=True)}
        if "timesteps" in wants:
            room["d_states"] = {name: empty((T, B, width)) for name, width in zip(names, self.widths, strict=True)}
            room["d_gates"] = empty((T, B, self.layer.architecture.gates * H))
            room["norms"] = {name: empty((T,), np.float64) for name in {*room["d_parameters"], "bias_ih", "bias_hh"}}
        return room

    def _gathered(self, found, d_input, wants, clip):
        problem, get = self.problem, self.device.get

        def stacked(name, of=lambda room: room):
            return np.stack([get(of(room)[name]) for room in found])

        def by_name(entry):
            pairs = zip(problem.suffixes, found, strict=True)
            return {name + suffix: get(array) for suffix, room in pairs for name, array in room[entry].items()}

        gathered = {"clipped": stacked("clipped")} if clip else {}
        if "input" in wants:
            gathered["input"] = self._get_rows(d_input)
        if "parameters" in wants:
            gathered["parameters"] = {name: self._drop(name, value) for name, value in by_name("d_parameters").items()}
        if "initial_state" in wants:
            initial = [stacked(name, lambda room: room["d_initial_state"]) for name in self.layer.architecture.states]
            gathered["initial_state"] = tuple(initial) if len(initial) == 2 else initial[0]
        if "timesteps" in wants:
            states = {name: stacked(name, lambda room: room["d_states"]) for name in self.layer.architecture.states}
            gathered |= states | {"gates": stacked("d_gates")}
            norms = {name: norm for name, norm in by_name("norms").items() if name in self.parameters}
            for name in self.masks.keys() & norms.keys():
                norms[name] /= 1 - problem.weight_dropout
            gathered["parameter_norms"] = norms
        return gathered


def run_cuda(problem, options=None, asked=None, loss=None, **of_tape):
    """Forward and backward with everything that can be asked for, as conftest.run."""
    tape = Tape(problem, options, **of_tape)
    return tape.results() | tape.backward(loss, **(asked or {}))
