"""Checks of the arguments of recurrent layers: constructors, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .._arguments import UNBOUNDED, Array, choice, flag, number, size
from .._random import Draw, MaskStream
from ..backend.protocol import Backend
from .architecture import Architecture, states_of

_MOST_LAYERS = 10_000  # a mistake, such as sizes in the wrong order, would keep the constructor busy for minutes
_MEMORY = ("full", "states", "checkpoint")
NONLINEARITIES = ("tanh", "relu", "sigmoid")
# The options of an LSTM that choose its cell, at most one at a time, and what they add to the name of the kernel.
_LSTM_VARIANTS = {"proj_size": "_projected", "peephole": "_peephole", "layer_norm": "_layer_norm"}

Options = Mapping[str, Any]


def describe(kind: str, options: Options, name: str | None = None) -> tuple[dict[str, Any], Architecture]:
    """Check the options of a constructor. Returns them as plain Python values, and the architecture.

    `kind` is ``"RNN"``, ``"GRU"`` or ``"LSTM"``; `name` is the layer's name in error messages.
    """
    name = kind if name is None else name
    cell, checked = _CELLS[kind](options)
    for key in ("input_size", "hidden_size"):
        checked[key] = size(key, options[key])
    checked["num_layers"] = size("num_layers", options["num_layers"], most=_MOST_LAYERS)
    for key in ("bias", "batch_first"):
        checked[key] = flag(key, options[key])
    checked["dropout"] = number("dropout", options["dropout"], 0, 1)
    checked["bidirectional"] = flag("bidirectional", options["bidirectional"])
    checked["reverse"] = flag("reverse", options.get("reverse", False))
    if checked["reverse"] and checked["bidirectional"]:
        raise ValueError("reverse is for a layer of one direction, but bidirectional is True too")
    checked["zoneout"] = _zoneout(name, options["zoneout"], states_of(cell))
    checked["weight_dropout"] = number("weight_dropout", options["weight_dropout"], 0, 1)
    shared = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "reverse", "zoneout")
    architecture = Architecture(
        name=name,
        cell=cell,
        num_directions=2 if checked["bidirectional"] else 1,
        proj_size=checked.get("proj_size", 0),
        weight_dropout=checked["weight_dropout"],
        **{key: checked[key] for key in shared},
    )
    return checked, architecture


def _rnn(options: Options) -> tuple[str, dict[str, Any]]:
    """The cell that the options select, and the checked options specific to this kind of layer."""
    nonlinearity = choice("nonlinearity", options["nonlinearity"], NONLINEARITIES)
    layer_norm = flag("layer_norm", options.get("layer_norm", False))
    variant = "_layer_norm" if layer_norm else "_kept" if options["zoneout"] else ""
    return f"rnn_{nonlinearity}{variant}", {"nonlinearity": nonlinearity, "layer_norm": layer_norm}


def _gru(options: Options) -> tuple[str, dict[str, Any]]:
    own = {"reset_after": flag("reset_after", options["reset_after"])}
    own["layer_norm"] = flag("layer_norm", options.get("layer_norm", False))
    if own["layer_norm"] and not own["reset_after"]:
        raise ValueError(
            "layer_norm=True was given with reset_after=False, but a GRU with layer normalisation resets after the "
            "recurrent product: expected reset_after=True or layer_norm=False"
        )
    return "gru_layer_norm" if own["layer_norm"] else "gru" if own["reset_after"] else "gru_original", own


def _lstm(options: Options) -> tuple[str, dict[str, Any]]:
    own = {"proj_size": size("proj_size", options["proj_size"], least=0)}
    own |= {key: flag(key, options.get(key, False)) for key in _LSTM_VARIANTS if key not in own}
    chosen = {key: value for key, value in own.items() if value}
    if len(chosen) > 1:
        *names, last = own
        given = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
        raise ValueError(f"an LSTM has at most one of {', '.join(names)} and {last}, got {given}")
    hidden_size = options["hidden_size"]
    if own["proj_size"] >= size("hidden_size", hidden_size):
        raise ValueError(f"proj_size must be smaller than hidden_size={hidden_size}, got {own['proj_size']}")
    return "lstm" + "".join(_LSTM_VARIANTS[key] for key in chosen), own


_CELLS: dict[str, Callable[[Options], tuple[str, dict[str, Any]]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}


def _zoneout(name: str, zoneout: Any, states: tuple[str, ...]) -> float | tuple[float, ...]:
    if not isinstance(zoneout, tuple | list):
        return number("zoneout", zoneout, 0, 1)
    if len(zoneout) != len(states):
        raise ValueError(
            f"zoneout must be a number{' or a pair' if len(states) > 1 else ''} for {name}, got {zoneout!r}"
        )
    return tuple(number(f"zoneout[{i}]", value, 0, 1) for i, value in enumerate(zoneout))


def check_memory(memory: Any) -> str | int:
    """Check `memory`, as :meth:`Recurrent.forward` takes it."""
    if isinstance(memory, int | np.integer):
        return size("memory", memory, most=UNBOUNDED)
    if not isinstance(memory, str) or memory not in _MEMORY:
        kind = ValueError if isinstance(memory, str) else TypeError
        raise kind(f"memory must be {', '.join(map(repr, _MEMORY))} or a number of steps, got {memory!r}")
    return memory


@dataclass(slots=True)
class Inputs:
    """The arguments of a forward, as the kernels take them."""

    x: Array  # (T, B, I)
    batched: bool  # whether the caller's arrays have a batch axis
    state: list[Array | None]  # the initial states (L*D, B, width); None: zeros
    lengths: Array | None = None  # (B,)
    resets: Array | None = None  # (T, B)


class Checks(NamedTuple):
    """Checks of the arrays passed to a layer on a backend."""

    architecture: Architecture
    backend: Backend
    dtype: Any

    def inputs(self, x: Any, state: Any, lengths: Any, resets: Any) -> Inputs:
        """The arguments of a forward."""
        x, batched = self.x(x)
        steps, batch = x.shape[:2]
        return Inputs(
            x,
            batched,
            self.state("state", state, batch, batched),
            self.backend.sequence_lengths(lengths, steps, batch, batched),
            self.resets(resets, steps, batch, batched),
        )

    def x(self, x: Any, name: str = "x") -> tuple[Array, bool]:
        """`x` as (T, B, I), and whether it came with a batch axis."""
        described, backend = self.architecture, self.backend
        x = backend.as_array(name, x)
        backend.check_dtype(name, x, self.dtype)
        if x.ndim not in (2, 3):
            layout = "B, T" if described.batch_first else "T, B"
            expected = f"({layout}, {described.input_size}), or (T, {described.input_size}) unbatched"
            raise ValueError(f"{name} has shape {x.shape}, expected {expected}")
        if x.shape[-1] != described.input_size:
            raise ValueError(
                f"{name} has {x.shape[-1]} features in its last axis, but this {described.name} was built "
                f"with input_size={described.input_size} ({name}.shape == {x.shape})"
            )
        batched = x.ndim == 3
        major = time_major(x, batched, described.batch_first)
        if major.shape[0] == 0:
            raise ValueError(f"{name} has no timesteps ({name}.shape == {x.shape}), expected T >= 1")
        return backend.features_together(major), batched

    def state(self, name: str, state: Any, batch: int, batched: bool, *, partial: bool = False) -> list[Array | None]:
        """The states as contiguous (L*D, B, width) arrays, None for zeros; `partial` allows None for single states."""
        described = self.architecture
        if state is None:
            return [None for _ in described.states]
        several = len(described.states) > 1
        if several:
            symbols = f"a pair ({', '.join(f'{each[0]}_0' for each in described.states)}) for {described.name}"
            if not isinstance(state, tuple | list):
                raise TypeError(f"{name} must be {symbols}, got {type(state).__name__}")
            if len(state) != len(described.states):
                raise ValueError(f"{name} must be {symbols}, got {len(state)} entries")
        else:
            state = (state,)
        arrays: list[Array | None] = []
        for i, (value, width) in enumerate(zip(state, described.widths, strict=True)):
            if value is None and partial:
                arrays.append(None)
                continue
            shape = (described.count, batch, width)
            own_shape = shape if batched else (described.count, width)
            given = self.backend.float_array(f"{name}[{i}]" if several else name, value, self.dtype, own_shape)
            arrays.append(self.backend.contiguous(given).reshape(shape))
        return arrays

    def resets(self, resets: Any, steps: int, batch: int, batched: bool) -> Array | None:
        """`resets` as (T, B)."""
        if resets is None:
            return None
        checked = self.backend.bool_array("resets", resets, (steps, batch) if batched else (steps,))
        return checked.reshape(steps, batch)

    def masks(
        self, given: Mapping[str, Array] | None, inputs: Inputs, training: bool, stream: MaskStream
    ) -> dict[str, Array]:
        """The masks in use: those given, or new ones."""
        described = self.architecture
        if given is None and not (training and described.draws_masks):
            return {}
        wanted = described.mask_shapes(*inputs.x.shape[:2]) if training else {}
        if not isinstance(given, Mapping | None):
            raise TypeError(f"masks must be a dict of bool arrays, got {type(given).__name__}")
        unexpected = sorted(map(str, set(given or ()) - set(wanted)))
        if unexpected:
            raise ValueError(
                f"masks has unexpected {', '.join(unexpected)}; expected {', '.join(wanted) or 'none'} "
                f"(dropout={described.dropout}, zoneout={described.zoneout}, "
                f"weight_dropout={described.weight_dropout}, num_layers={described.num_layers}, training={training})"
            )
        given = given or {}
        passes = stream.next_pass() if wanted.keys() - given.keys() else 0
        masks = {}
        for name, (shape, probability, place) in wanted.items():
            if name in given:
                of_user = shape if inputs.batched or len(shape) == 2 else (shape[0], shape[2])
                masks[name] = self.backend.bool_array(f"masks[{name!r}]", given[name], of_user).reshape(shape)
            else:
                masks[name] = self.backend.random_mask(Draw(stream.key, place, passes), shape, probability)
        return masks


def time_major(array: Array, batched: bool, batch_first: bool) -> Array:
    """A (T, B, F) view of an array in the caller's layout; its own inverse for batched arrays."""
    if not batched:
        return array[:, None]
    return array.swapaxes(0, 1) if batch_first else array
