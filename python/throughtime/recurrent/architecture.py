"""The description of a stack of recurrent layers, without its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .. import _core

# The states that a cell carries from step to step, by the first word of its name. The first state is the output.
_STATES: dict[str, tuple[str, ...]] = {"rnn": ("hidden",), "gru": ("hidden",), "lstm": ("hidden", "cell")}
# The gates of a cell, a letter each, in the order of its weights' rows; by the cell's name, or else by its first word.
# f and z keep the old state. i lets the candidate g in; in an LSTM without f, f is 1 - i. n and h are the candidates of
# the GRU and the RNN.
_GATES: dict[str, str] = {"rnn": "h", "gru": "rzn", "lstm": "ifgo"}
EPS = 1e-5  # for the cells' layer normalisation
_BIASES = ("bias_ih", "bias_hh")
# The kinds of random masks. Their order and the room for more kinds are part of what a seed means: add to the end.
_MASKS = ("dropout", "hidden", "cell", "weight_hh")
_MOST_MASKS = 8

# Parameters that start as a constant; all others are random.
CONSTANTS: dict[str, float] = {"weight_ln_ih": 1, "weight_ln_hh": 1, "weight_ln_c": 1, "bias_ln_c": 0}


class Mask(NamedTuple):
    """A random mask: its shape, the probability that an entry is true, and its number among the layer's masks."""

    shape: tuple[int, ...]
    probability: float
    number: int


@dataclass(frozen=True)
class Architecture:
    """A stack of recurrent layers without its parameters: all that forward, backward and analyses know of a layer.

    An index below is that of a layer and direction in the order of ``h_n``: layers outside, directions inside.

    Attributes
    ----------
    name : str
        The class of the layer, for error messages.
    cell : str
        The name of the kernel.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, zoneout, weight_dropout
        As for :class:`throughtime.LSTM`.
    proj_size : int
        Features of a projected h; 0 without projection.
    num_directions : int
    reverse : bool
        Whether the only direction runs from the last timestep to the first.
    """

    name: str
    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    num_directions: int = 1
    reverse: bool = False
    proj_size: int = 0
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    zoneout: float | tuple[float, ...] = 0.0
    weight_dropout: float = 0.0

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The names of the cell's states."""
        return states_of(self.cell)

    @cached_property
    def width(self) -> int:
        """Features of h, and of one direction's output."""
        return self.proj_size or self.hidden_size

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Features of each state."""
        return (self.width, *(self.hidden_size for _ in self.states[1:]))

    @cached_property
    def output_size(self) -> int:
        """Features of the output of a layer, all directions."""
        return self.num_directions * self.width

    @cached_property
    def count(self) -> int:
        """The number of layers and directions."""
        return self.num_layers * self.num_directions

    @cached_property
    def gate_rows(self) -> int:
        """G*H: rows of ``weight_ih`` and ``weight_hh``."""
        return self._shapes(1)["weight_hh"][0]

    @cached_property
    def gates(self) -> int:
        """G."""
        return self.gate_rows // self.hidden_size

    @cached_property
    def gate_names(self) -> str:
        """The gates, a letter each, in the order of the weights' rows; see `gates_of`."""
        names = gates_of(self.cell)
        if len(names) != self.gates:
            raise NotImplementedError(f"the gates of {self.cell} must have {self.gates} names, got {names!r}")
        return names

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """The suffix of the parameters' names, by index."""
        directions = ("", "_reverse")[: self.num_directions]
        return tuple(f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions)

    @cached_property
    def goes_back(self) -> tuple[bool, ...]:
        """Whether a direction runs from the last timestep to the first, by index."""
        return tuple(self.reverse or index % self.num_directions == 1 for index in range(self.count))

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """The kernels' names of the parameters of one layer and direction."""
        return tuple(self._shapes(1))

    @cached_property
    def own_parameters(self) -> tuple[dict[str, str], ...]:
        """The kernels' name and the full name of each parameter, by index."""
        return tuple({name: name + suffix for name in self.parameter_names} for suffix in self.suffixes)

    @cached_property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by full name."""
        shapes: dict[str, tuple[int, ...]] = {}
        first, others = self._shapes(self.input_size), self._shapes(self.output_size)
        for index, suffix in enumerate(self.suffixes):
            own = first if index < self.num_directions else others
            shapes |= {name + suffix: shape for name, shape in own.items()}
        return shapes

    def _shapes(self, below: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters of one layer and direction whose input has `below` features."""
        shapes = _core.parameter_shapes(self.cell, below, self.hidden_size, self.width)
        return {name: shape for name, shape in shapes.items() if self.bias or name not in _BIASES}

    @cached_property
    def zoneouts(self) -> dict[str, float]:
        """For each state, the probability that a unit keeps its old value."""
        each = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * len(self.states)
        return dict(zip(self.states, each, strict=True))

    @cached_property
    def draws_masks(self) -> bool:
        """Whether training needs masks."""
        return bool(self.dropout or self.weight_dropout or any(self.zoneouts.values()))

    def zoneout_mask(self, state: str, index: int) -> str:
        """The name of a zoneout mask."""
        return f"zoneout_{state[0]}{self.suffixes[index]}"

    def mask_shapes(self, steps: int, batch: int) -> dict[str, Mask]:
        """Every mask that training needs, by name."""
        wanted: dict[str, Mask] = {}
        if self.dropout:
            shape = (steps, batch, self.output_size)
            for layer in range(self.num_layers - 1):
                number = _mask_number("dropout", layer * self.num_directions)
                wanted[f"dropout_l{layer}"] = Mask(shape, self.dropout, number)
        for index, suffix in enumerate(self.suffixes):
            for (state, probability), width in zip(self.zoneouts.items(), self.widths, strict=True):
                if probability:
                    number = _mask_number(state, index)
                    wanted[self.zoneout_mask(state, index)] = Mask((steps, batch, width), probability, number)
            if self.weight_dropout:
                name = "weight_hh" + suffix
                number = _mask_number("weight_hh", index)
                wanted[name] = Mask(self.parameter_shapes[name], self.weight_dropout, number)
        return wanted


def _mask_number(kind: str, index: int) -> int:
    """The same for a mask whatever others there are, so that no option changes the random numbers of another."""
    return _MOST_MASKS * index + _MASKS.index(kind)


def states_of(cell: str) -> tuple[str, ...]:
    """The names of a cell's states."""
    return _STATES[cell.partition("_")[0]]


def gates_of(cell: str) -> str:
    """The gates of a cell: letters of i f g o, r z n or h, in the order of the weights' rows."""
    return _GATES.get(cell) or _GATES[cell.partition("_")[0]]
