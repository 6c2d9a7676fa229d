"""The tape of one forward pass through a recurrent layer, and the gradients its backward returns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import layer_norm
from ._arguments import UNBOUNDED, Array, flag, number, size
from ._finite import forward_fault, incoming_fault, overflow, raise_fault, valid_of
from ._memory import with_room
from .modules import affine

if TYPE_CHECKING:
    from ._core import RecurrentGradients, RecurrentProblem
    from .recurrent import Recurrent, State

_TIMESTEPS = ("hidden", "cell", "gates", "products", "parameter_norms")
EPS = 1e-5  # of the kernels' layer normalisation


class Gradients:
    """What :meth:`Tape.backward` returns.

    Attributes
    ----------
    input : (T, B, I) array
        dL/dx_t, in the layout of x.
    parameters : dict of str to array
        dL/dW, named as the layer's parameters.
    initial_state : (L*D, B, H) array, or a pair of them for the LSTM
    hidden, cell : (L*D, T, B, H) array
        Total dL/dh_t and dL/dc_t, if asked for (they are by default).
    gates : (L*D, T, B, G*H) array
        Gradient of the input's part of the pre-activations, ``W_ih x + b_ih``, with layer normalisation
        ``LN(W_ih x) + b_ih``, if asked for. Summed over t it is what each sequence adds to the gradient of ``bias_ih``.
    products : (L*D, T, B, G*H) array
        Gradient of the product ``W_ih x`` alone, if asked for: ``sum_t products[i, t, b]^T x[t, b]``, with the layer's
        own input x, is what sequence b adds to the gradient of ``weight_ih``. It is ``gates`` but for layer
        normalisation, which stands between the product and the bias.
    parameter_norms : dict of str to (T,) float64 array
        Frobenius norm of what each timestep adds to each parameter's gradient, if asked for.
    clipped : (L*D, T, B) bool array
        Where ``clip`` took effect, if it was given.
    """

    def __init__(self, **arrays: Any) -> None:
        self.__dict__.update({name: value for name, value in arrays.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name in _TIMESTEPS:
            raise AttributeError(
                f"grads.{name} was not asked for: tape.backward(..., timesteps=({name!r}, ...)); "
                "a layer without a cell state has no 'cell'"
            )
        if name == "clipped":
            raise AttributeError("grads.clipped exists where tape.backward(..., clip=...) was called")
        raise AttributeError(f"gradients have no {name!r}")

    def __repr__(self) -> str:
        return f"Gradients({', '.join(self.__dict__)})"


class Tape:
    """One forward pass. Made by ``layer.forward``; ``backward`` may be called more than once.

    Attributes
    ----------
    output : (T, B, D*H) array
        In the layout of x; ``(B, D*H)`` with ``output="last"``.
    final_state : (L*D, B, H) array, or a pair of them for the LSTM
    masks : dict of str to bool array
        The masks used, of dropout, zoneout and weight dropout.
    """

    output: Array
    final_state: State
    masks: dict[str, Array]

    @with_room
    def __init__(
        self,
        layer: Recurrent,
        x: Array,
        *,
        batched: bool,
        state: list[Array],
        lengths: Array | None,
        resets: Array | None,
        masks: dict[str, Array],
        last: bool,
        memory: str | int | None,
        parameters: dict[str, Array] | None = None,
    ) -> None:
        if parameters is None:
            parameters = layer.parameters
            if memory is not None:  # they may change before the backward
                parameters = {name: array.copy() for name, array in parameters.items()}
        self._describe(layer, (x.shape[0], x.shape[1]), batched, lengths, resets, masks, memory, parameters)
        self._last = last
        self.masks = {name: self._unbatch(mask, 1) if mask.ndim == 3 else mask for name, mask in masks.items()}
        self._forward(x, state)

    def _describe(
        self,
        layer: Recurrent,
        sizes: tuple[int, int],
        batched: bool,
        lengths: Array | None,
        resets: Array | None,
        masks: dict[str, Array],
        memory: str | int | None,
        parameters: dict[str, Array],
    ) -> None:
        """What forward and backward go by, beside the arrays that the one makes for the other."""
        self._layer, self._sizes, self._batched = layer, sizes, batched
        self._memory = memory  # None: an inference
        self._every = steps_between(memory, sizes[0])
        self._lengths, self._resets, self._masks = lengths, resets, masks
        dropped = parameters.keys() & masks.keys()
        of_masks = {
            name: layer._backend.dropped(parameters[name], masks[name], layer.weight_dropout) for name in dropped
        }
        self._parameters = {**parameters, **of_masks}

    # The arrays that go from forward to backward, for who keeps them elsewhere

    def _kept(self) -> list[Array]:
        """The arrays that the backward reads beside x, parameters and masks, as :func:`kept_shapes` lists them."""
        own = [array for k, array in enumerate(self._inputs) if k and not self._is_view_of_states(k)]
        for array in self._states if not self._every else ():
            for index in range(len(array)):  # the row that nobody writes: what is kept follows from the call alone
                array[index, self._sizes[0] + 1 - self._initial_row(index, 0)] = 0
        return [*self._states, *(array for array in self._saved if array is not None), *own]

    @classmethod
    def _restored(
        cls,
        layer: Recurrent,
        x: Array,
        kept: list[Array],
        *,
        batched: bool,
        lengths: Array | None,
        masks: dict[str, Array],
        memory: str | int,
        parameters: dict[str, Array],
    ) -> Tape:
        """A tape for the backward alone, of x (T, B, I) and what another one's :meth:`_kept` gave."""
        tape = cls.__new__(cls)
        tape._describe(layer, (x.shape[0], x.shape[1]), batched, lengths, None, masks, memory, parameters)
        rest = iter(kept)
        tape._states = [next(rest) for _ in layer._state_names]
        count = layer.num_layers * layer.num_directions
        tape._saved = [next(rest) if memory == "full" else None for _ in range(count)]
        tape._inputs = [x]
        for k in range(1, 1 if tape._every else layer.num_layers):
            tape._inputs.append(tape._states[0][k - 1, 1:-1] if tape._is_view_of_states(k) else next(rest))
        return tape

    def _is_view_of_states(self, number_: int) -> bool:
        """Whether the input of this layer, not the first, is the states of the layer below as they stand."""
        return self._layer.num_directions == 1 and not self._every and f"dropout_l{number_ - 1}" not in self._masks

    # Forward

    def _forward(self, x: Array, state: list[Array]) -> None:
        layer, (_, batch) = self._layer, self._sizes
        count = layer.num_layers * layer.num_directions
        self._states = self._new_states(self._every, state)
        self._saved = [self._new_saved() if self._memory == "full" else None for _ in range(count)]
        self._inputs = self._run_layers(x, layer.num_layers, self._states, self._every)
        x = self._inputs.pop()
        if self._memory is None:
            self._inputs = []
        elif self._every:
            del self._inputs[1:]  # what the layers above read is computed again
        final = [self._final_state(states) for states in self._states]
        if self._last:
            top = final[0][count - layer.num_directions :]
            x = layer._backend.contiguous(top.swapaxes(0, 1)).reshape(batch, layer.num_directions * layer._width)
            self.output = self._unbatch(x, 0)
        else:
            self.output = self._user_layout(x)
        self.final_state = self._as_state(final)

    def _new_states(self, every: int, initial: list[Array]) -> list[Array]:
        """Room for every kept state of all layers, with the initial one in its place; see cpp/cpu/history.hpp."""
        layer, (steps, batch) = self._layer, self._sizes
        count = layer.num_layers * layer.num_directions
        states = [layer._backend.empty(shape, layer.dtype) for shape in _state_shapes(layer, steps, batch, every)]
        for array, start in zip(states, initial, strict=True):
            for index in range(count):
                array[index, self._initial_row(index, every)] = start[index]
        return states

    def _initial_row(self, index: int, every: int) -> int:
        return self._sizes[0] + 1 if not every and self._is_reverse(index) else 0

    def _new_saved(self) -> Array:
        return self._layer._backend.empty(_saved_shape(self._layer, *self._sizes), self._layer.dtype)

    def _run_layers(self, x: Array, count: int, states: list[Array], every: int) -> list[Array]:
        """The lowest `count` layers: the input of each, and the output of the last."""
        inputs = [x]
        for number_ in range(count):
            inputs.append(self._forward_layer(number_, inputs[-1], states, every))
            if self._memory is None:
                del inputs[0]
        return inputs

    def _upper_inputs(self) -> list[Array]:
        """The input of every layer, those that were not kept computed again."""
        count = self._layer.num_layers
        if len(self._inputs) == count:
            return list(self._inputs)
        steps, stack = self._sizes[0], self._layer._backend.stack
        initial = [
            stack([array[i, self._initial_row(i, self._every)] for i in range(len(array))]) for array in self._states
        ]
        return self._run_layers(self._inputs[0], count - 1, self._new_states(steps, initial), steps)

    def _forward_layer(self, number_: int, x: Array, arrays: list[Array], every: int) -> Array:
        """One layer, both directions; what it hands to the layer above."""
        layer, (steps, batch) = self._layer, self._sizes
        directions, units = layer.num_directions, layer._width
        is_top = number_ == layer.num_layers - 1
        # Below the top, one direction's states are the next layer's input as they stand: nothing reads the padding.
        output = None
        if not (is_top and self._last) and (is_top or directions > 1 or every):
            output = (
                self._new_layout(directions * units)
                if is_top
                else layer._backend.empty((steps, batch, directions * units), layer.dtype)
            )
        for direction in range(directions):
            index = number_ * directions + direction
            problem = self._problem(index, x, arrays, every)
            if output is not None:
                problem["output"] = output[:, :, direction * units : (direction + 1) * units]
            if batch:
                layer._backend.forward(layer._cell, problem)
        if output is None:
            output = arrays[0][number_, 1:-1] if not (is_top and self._last) else x
        return output if is_top else self._drop(number_, output)

    def _problem(self, index: int, x: Array, arrays: list[Array], every: int) -> RecurrentProblem:
        """What the kernels are told of one layer and direction."""
        suffix = self._layer._suffixes[index]
        states = zip(self._layer._state_names, arrays, strict=True)
        zoneout: dict[str, Any] = dict(zip(self._layer._state_names, self._layer._zoneouts(), strict=True))
        if self._masks:
            zoneout = {name: self._masks.get(f"zoneout_{name[0]}{suffix}", part) for name, part in zoneout.items()}
        return {
            "parameters": {name: self._parameters[name + suffix] for name in self._layer._parameter_names},
            "states": {name: array[index] for name, array in states},
            "every": every,
            "x": x,
            "reverse": self._is_reverse(index),
            "lengths": self._lengths,
            "resets": self._resets,
            "saved": self._saved[index],
            "zoneout": zoneout,
        }

    def _is_reverse(self, index: int) -> bool:
        return self._layer.reverse or index % self._layer.num_directions == 1

    def _final_state(self, states: Array) -> Array:
        if self._every:
            return states[:, -1].copy()
        if self._layer.reverse:
            return states[:, 1].copy()
        final = states[:, self._sizes[0]].copy()
        if self._layer.bidirectional:
            final[1::2] = states[1::2, 1]
        return final

    def _drop(self, number_: int, array: Array) -> Array:
        """Dropout above this layer, or its gradient: the same function of the mask."""
        mask = self._masks.get(f"dropout_l{number_}")
        if mask is None:
            return array
        return self._layer._backend.dropped(array, mask, self._layer.dropout)

    # Layouts

    def _unbatch(self, array: Array, axis: int) -> Array:
        return array if self._batched else array.squeeze(axis)

    def _user_layout(self, array: Array) -> Array:
        """A (T, B, F) array as the caller sees it."""
        return self._layer._time_major(array, True) if self._batched else array[:, 0]

    def _new_layout(self, features: int) -> Array:
        """A new (T, B, F) array whose memory is in the caller's layout."""
        steps, batch = self._sizes
        first = self._layer.batch_first and self._batched
        shape = (batch, steps, features) if first else (steps, batch, features)
        array = self._layer._backend.empty(shape, self._layer.dtype)
        return array.swapaxes(0, 1) if first else array

    def _as_state(self, arrays: list[Array]) -> State:
        arrays = [self._unbatch(array, 1) for array in arrays]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    # What was kept

    @property
    def hidden(self) -> Array:
        """Every hidden state h_t, (L*D, T, B, H); index t is the input's timestep. A view: do not write into it."""
        return self._every_state("hidden")

    @property
    def cell(self) -> Array:
        """Every cell state c_t, (L*D, T, B, H); only the LSTM has it."""
        return self._every_state("cell")

    def _every_state(self, name: str) -> Array:
        if name not in self._layer._state_names:
            raise AttributeError(f"{type(self._layer).__name__} has no {name} state")
        if self._every:
            kept = "made for inference" if self._memory is None else f"made with memory={self._memory!r}"
            raise AttributeError(
                f"tape.{name} was not kept: this tape was {kept}; memory='full' and memory='states' keep every state"
            )
        return self._unbatch(self._states[self._layer._state_names.index(name)][:, 1:-1], 2)

    @property
    def gates(self) -> Array:
        """Every gate after its activation, (L*D, T, B, G*H), in the order of the weights; zero beyond a length.

        i f g o of the LSTM, r z n of the GRU; of the RNN the one activation, which is h_t before any zoneout. Index t
        is the input's timestep. A copy, made from what ``memory="full"`` keeps, at each access; the gradients of the
        same pre-activations are ``grads.gates``.
        """
        layer, (steps, batch) = self._layer, self._sizes
        layer._needs_host("tape.gates")
        if self._memory != "full":
            kept = "made for inference" if self._memory is None else f"made with memory={self._memory!r}"
            raise AttributeError(f"tape.gates was not kept: this tape was {kept}; memory='full' keeps the gates")
        count = layer.num_layers * layer.num_directions
        gates = np.empty((count, steps, batch, layer._gates * layer.hidden_size), layer.dtype)
        for index in range(count):
            layer._gate_values(self, index, gates[index])
        valid = valid_of(self)
        if valid is not None:
            gates[:, ~valid] = 0
        return self._unbatch(gates, 2)

    def _saved_units(self, index: int) -> Array:
        """What the cell of a layer and direction saved, (T, B, values, H)."""
        saved, (steps, batch) = self._saved[index], self._sizes
        assert saved is not None
        by_sequence = saved if self._layer._backend.sees_whole_rows(self._layer._cell) else saved.swapaxes(1, 2)
        values = by_sequence.swapaxes(2, 3).reshape(steps, batch, saved.shape[3], -1)
        return values[..., : self._layer.hidden_size]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that this tape holds, beside x and the output."""
        arrays = [*self._states, *self._saved, *self._inputs[1:], *self._masks.values(), *self._parameters.values()]
        owner_of = self._layer._backend.owner
        owners = {id(owner): owner.nbytes for array in arrays if array is not None for owner in [owner_of(array)]}
        return sum(owners.values())

    # Backward

    @with_room
    def backward(
        self,
        d_output: Array | None = None,
        d_final_state: Any = None,
        *,
        d_cell: Array | None = None,
        timesteps: Iterable[str] = ("hidden", "cell"),
        truncate: int | None = None,
        clip: float | None = None,
        check_finite: bool = False,
    ) -> Gradients:
        """Backpropagate through every timestep. At least one of the gradients must be given.

        Parameters
        ----------
        d_output : array, optional
            Gradient of the loss with respect to ``output``, in its shape.
        d_final_state : (L*D, B, H) array, or a pair of them for the LSTM, optional
            Gradient with respect to ``final_state``; one of a pair may be None.
        d_cell : (L*D, T, B, H) array, optional
            Gradient with respect to every c_t.
        timesteps : iterable of {"hidden", "cell", "gates", "products", "parameter_norms"}
            What to return for every timestep, as :class:`Gradients` has it. ``"cell"`` is ignored by cells without c.
        truncate : int, optional
            Truncated BPTT: the gradient stops every so many steps, counted from each direction's own first step.
        clip : float, optional
            Largest norm, per sequence, of what flows into a step from the one after it.
        check_finite : bool
            Raise FloatingPointError where a NaN or infinity enters, naming tensor, timestep, layer and sequence. First
            the forward is looked through, from the lowest layer up, each direction in its own order: x, the initial
            state, parameters, what overflows. Then the backward, from the highest layer down and in its order:
            incoming gradients, and what overflows.

        Returns
        -------
        Gradients

        Raises
        ------
        ValueError
            If no gradient is given, or a size does not fit.
        TypeError
            If an array has another dtype than the layer.
        FloatingPointError
            With ``check_finite``.

        Examples
        --------
        >>> import numpy as np, throughtime as tt
        >>> x = np.random.default_rng(0).standard_normal((1000, 4, 8), dtype=np.float32)
        >>> tape = tt.LSTM(8, 16, seed=0).forward(x)
        >>> grads = tape.backward(np.ones_like(tape.output))
        >>> grads.input.shape, grads.hidden.shape, grads.parameters["weight_hh_l0"].shape
        ((1000, 4, 8), (1, 1000, 4, 16), (64, 16))
        """
        if not self._inputs:
            raise RuntimeError("this tape was made for inference and kept nothing")
        asked = check_timesteps(timesteps)
        d_final = self._layer._check_state("d_final_state", d_final_state, self._sizes[1], self._batched, partial=True)
        final_parts = d_final_state if isinstance(d_final_state, tuple | list) else [d_final_state]
        if all(part is None for part in (d_output, d_cell, *final_parts)):
            raise ValueError("backward needs at least one of d_output, d_final_state and d_cell, got None for each")
        d_given, d_cell = list(d_final), self._check_d_cell(d_cell)
        d_top = self._check_d_output(d_output, d_final)
        options = {
            "truncate": None if truncate is None else min(size("truncate", truncate, most=UNBOUNDED), self._sizes[0]),
            "clip": None if clip is None else number("clip", clip, 0, float("inf"), open_low=True),
        }
        finite = flag("check_finite", check_finite)
        if finite:
            d_last = self._last_d_output(d_output) if self._last and d_output is not None else d_top
            raise_fault(forward_fault(self) or incoming_fault(self, d_last, d_given, d_cell))
        pass_ = _Backward(self, asked, d_cell, d_final, options, finite, Wanted())
        return pass_.run(d_top)

    def _check_d_output(self, d_output: Any, d_final: list[Array]) -> Array | None:
        """d_output as (T, B, D*H); for ``output="last"`` it is added to the final state's gradient instead."""
        if d_output is None:
            return None
        if self._last:
            directions = self._layer.num_directions
            d_final[0] = d_final[0].copy()
            of_top = d_final[0][-directions:]
            of_top += self._last_d_output(d_output).reshape(-1, directions, self._layer._width).swapaxes(0, 1)
            return None
        backend = self._layer._backend
        given = backend.float_array("d_output", d_output, self._layer.dtype, self.output.shape)
        return backend.features_together(self._layer._time_major(given, self._batched))

    def _last_d_output(self, d_output: Any) -> Array:
        """d_output for ``output="last"``, (B, D*H)."""
        given = self._layer._backend.float_array("d_output", d_output, self._layer.dtype, self.output.shape)
        return given.reshape(self._sizes[1], self._layer.num_directions * self._layer._width)

    def _check_d_cell(self, d_cell: Any) -> Array | None:
        if d_cell is None:
            return None
        if len(self._states) == 1:
            raise ValueError(f"d_cell was given, but {type(self._layer).__name__} has no cell state")
        (steps, batch), units, count = self._sizes, self._layer.hidden_size, self._states[0].shape[0]
        shape = (count, steps, batch, units) if self._batched else (count, steps, units)
        backend = self._layer._backend
        given = backend.float_array("d_cell", d_cell, self._layer.dtype, shape)
        return backend.contiguous(given).reshape(count, steps, batch, units)


class Wanted(NamedTuple):
    """The gradients that someone asks for, beside those of timesteps; others may cost nothing."""

    input: bool = True
    initial_state: bool = True
    parameters: frozenset[str] | None = None  # None: all


class _Backward:
    """One backward pass: the arrays it fills, layer by layer from the top."""

    def __init__(
        self,
        tape: Tape,
        asked: set[str],
        d_cell: Array | None,
        d_final: list[Array],
        options: dict[str, Any],
        check_finite: bool,
        wanted: Wanted,
    ) -> None:
        self.tape, self.asked, self.d_cell, self.d_final = tape, asked, d_cell, d_final
        self.options, self.check_finite, self.wanted = options, check_finite, wanted
        layer, (steps, batch), self.backend = tape._layer, tape._sizes, tape._layer._backend
        count, empty, zeros = layer.num_layers * layer.num_directions, self.backend.empty, self.backend.zeros
        new = empty if batch else zeros  # kernels fill them
        self.parameters = {name: new(tape._parameters[name].shape, layer.dtype) for name in self._wanted_parameters()}
        self.lowest = self._lowest_layer()
        # Where B is 0 no kernel runs: the final state's (empty) gradient is the answer.
        self.initial = [empty(array.shape, layer.dtype) for array in d_final]
        per_step = (count, steps, batch)
        self.states = [
            empty((*per_step, width), layer.dtype) if name in asked or check_finite else None
            for name, width in zip(layer._state_names, layer._state_widths, strict=True)
        ]
        rows = layer._gates * layer.hidden_size
        self.gates = empty((*per_step, rows), layer.dtype) if {"gates", "products"} & asked else None
        self.products = self.gates if "products" in asked else None  # the same but for layer normalisation
        self.normalises = self.products is not None and "weight_ln_ih" in layer._parameter_names
        if self.normalises:
            layer._needs_host("timesteps='products' with layer normalisation")
            self.products = empty((*per_step, rows), layer.dtype)
        self.clipped = zeros(per_step, np.bool_) if options["clip"] else None
        asks_norms = "parameter_norms" in asked
        self.norms = {name: zeros((steps,), np.float64) for name in self.parameters} if asks_norms else None

    def run(self, d_output: Array | None) -> Gradients:
        tape, layer = self.tape, self.tape._layer
        inputs = tape._upper_inputs()
        for number_ in reversed(range(self.lowest, layer.num_layers)):
            d_output = self._layer(number_, inputs.pop(), d_output)
            if number_ > self.lowest:
                assert d_output is not None
                d_output = tape._drop(number_ - 1, d_output)
        self._drop_weights()
        named = dict(zip(layer._state_names, self.states, strict=True))
        arrays = {name: named.get(name) if name in self.asked else None for name in ("hidden", "cell")}
        arrays |= {"gates": self.gates if "gates" in self.asked else None, "products": self.products}
        arrays["clipped"] = self.clipped
        return Gradients(
            input=None if d_output is None or not self.wanted.input else tape._user_layout(d_output),
            parameters=self.parameters,
            initial_state=tape._as_state(self.initial),
            parameter_norms=self.norms,
            **{name: None if array is None else tape._unbatch(array, 2) for name, array in arrays.items()},
        )

    def _wanted_parameters(self) -> list[str]:
        """The kernels fill all parameters of a layer and direction, or none."""
        layer, wanted = self.tape._layer, self.wanted.parameters
        if wanted is None or "parameter_norms" in self.asked:
            return list(self.tape._parameters)
        groups = [[name + suffix for name in layer._parameter_names] for suffix in layer._suffixes]
        return [name for group in groups if not wanted.isdisjoint(group) for name in group]

    def _lowest_layer(self) -> int:
        """The number of the layer below which nothing is wanted."""
        if self.wanted.input or self.wanted.initial_state or self.asked or self.check_finite:
            return 0
        layer = self.tape._layer
        wanted = [f"weight_hh{suffix}" in self.parameters for suffix in layer._suffixes]
        return wanted.index(True) // layer.num_directions if True in wanted else layer.num_layers

    def _drop_weights(self) -> None:
        """What reached a dropped-out weight_hh reaches the parameter through its mask."""
        probability = self.tape._layer.weight_dropout
        for name in self.parameters.keys() & self.tape._masks.keys():
            self.parameters[name] = self.backend.dropped(self.parameters[name], self.tape._masks[name], probability)
            if self.norms is not None and probability < 1:
                self.norms[name] /= 1 - probability

    def _layer(self, number_: int, x: Array, d_output: Array | None) -> Array | None:
        """Both directions of one layer; returns the gradient of its input, where something wants it."""
        tape, layer = self.tape, self.tape._layer
        d_input = None
        if number_ > self.lowest:
            d_input = self.backend.empty(x.shape, x.dtype)
        elif self.wanted.input:
            d_input = tape._new_layout(x.shape[2])
        units = layer._width
        for direction in range(layer.num_directions):
            index = number_ * layer.num_directions + direction
            gradients = self._gradients(index)
            gradients["d_input"] = d_input
            gradients["add_to_input"] = direction > 0
            if d_output is not None:
                gradients["d_output"] = d_output[:, :, direction * units : (direction + 1) * units]
            if tape._sizes[1]:
                self.backend.backward(layer._cell, tape._problem(index, x, tape._states, tape._every), gradients)
                if self.normalises:
                    self._fill_products(index, x)
            if self.check_finite:
                self._check_finite(index, d_input if direction == layer.num_directions - 1 else None)
        return d_input

    def _gradients(self, index: int) -> RecurrentGradients:
        """What the kernel is given, and what it fills, for one layer and direction."""
        layer, suffix = self.tape._layer, self.tape._layer._suffixes[index]

        def of(array: Array | None) -> Array | None:
            return None if array is None else array[index]

        def named(arrays: list[Any]) -> dict[str, Any]:
            return dict(zip(layer._state_names, map(of, arrays), strict=True))

        names, norms = layer._parameter_names, None
        parameters = {name: self.parameters[name + suffix] for name in names if name + suffix in self.parameters}
        if self.norms is not None:  # the kernel fills those of biases also where there are none
            steps = self.tape._sizes[0]
            unread = self.backend.zeros((steps,), np.float64)
            norms = {name: self.norms.get(name + suffix, unread) for name in (*names, "bias_ih", "bias_hh")}
        return {
            "d_parameters": parameters or None,
            "dropped": self.tape._masks.get("weight_hh" + suffix),
            "truncate": self.options["truncate"],
            "clip": self.options["clip"],
            "d_states": named(self.states),
            "d_cell": of(self.d_cell),
            "d_final_state": named(self.d_final),
            "d_initial_state": named(self.initial),
            "d_gates": of(self.gates),
            "clipped": of(self.clipped),
            "norms": norms,
        }

    def _fill_products(self, index: int, x: Array) -> None:
        """From the gradient of LN(W_ih x) + b_ih that of W_ih x, which is computed again."""
        assert self.gates is not None
        assert self.products is not None
        suffix, valid = self.tape._layer._suffixes[index], valid_of(self.tape)
        known = x if valid is None else np.where(valid[..., None], x, x.dtype.type(0))
        product = affine(known.reshape(-1, x.shape[2]), self.tape._parameters["weight_ih" + suffix], None)
        gain = self.tape._parameters["weight_ln_ih" + suffix]
        _, _, saved = layer_norm.forward(product, None, gain, np.zeros_like(gain), 1.0, EPS)
        assert saved is not None
        d_product, *_ = layer_norm.backward(None, self.gates[index].reshape(product.shape), saved)
        self.products[index] = d_product.reshape(self.products[index].shape)

    def _check_finite(self, index: int, d_input: Array | None) -> None:
        """Raise for the first NaN or infinity in the order in which the backward makes them."""
        tape, layer = self.tape, self.tape._layer
        states = zip(layer._state_names, self.states, strict=True)
        made = {name: array[index] for name, array in states if array is not None}
        raise_fault(overflow(tape, index, made if d_input is None else {**made, "input": d_input}))
        where = f"layer {index // layer.num_directions}" + (", reverse direction" if tape._is_reverse(index) else "")
        for name in (parameter + layer._suffixes[index] for parameter in layer._parameter_names):
            if not self.backend.finite(self.parameters[name][None]).all():
                raise FloatingPointError(f"the gradient of parameter {name} overflows in {where}")
        for name, initial in zip(layer._state_names, self.initial, strict=True):
            if not self.backend.finite(initial[index][None]).all():
                raise FloatingPointError(f"the gradient of the initial state, {name}, is not finite in {where}")


def check_timesteps(timesteps: Iterable[str], known: tuple[str, ...] = _TIMESTEPS) -> set[str]:
    """`timesteps` as a set of those words that are known."""
    try:
        asked = {timesteps} if isinstance(timesteps, str) else set(timesteps)
    except TypeError:
        raise TypeError(f"timesteps must be a tuple of {', '.join(map(repr, known))}, got {timesteps!r}") from None
    unknown = sorted(asked - set(known), key=str)
    if unknown:
        raise ValueError(f"timesteps has {unknown[0]!r}, expected some of {', '.join(map(repr, known))}")
    return asked


def kept_shapes(
    layer: Recurrent, steps: int, batch: int, masks: Iterable[str], memory: str | int
) -> list[tuple[int, ...]]:
    """The shapes of what :meth:`Tape._kept` gives, in its order: states, saved values, inputs of the upper layers."""
    every, count = steps_between(memory, steps), layer.num_layers * layer.num_directions
    shapes = _state_shapes(layer, steps, batch, every)
    if memory == "full":
        shapes += [_saved_shape(layer, steps, batch)] * count
    for number_ in range(0 if every else layer.num_layers - 1):
        if layer.num_directions > 1 or f"dropout_l{number_}" in masks:
            shapes.append((steps, batch, layer.num_directions * layer._width))
    return shapes


def _state_shapes(layer: Recurrent, steps: int, batch: int, every: int) -> list[tuple[int, ...]]:
    """Of each kind of state: rows of all layers and directions, kept so many steps apart; 0 for every step."""
    rows = (steps - 1) // every + 2 if every else steps + 2
    return [(layer.num_layers * layer.num_directions, rows, batch, width) for width in layer._state_widths]


def _saved_shape(layer: Recurrent, steps: int, batch: int) -> tuple[int, ...]:
    return (steps, *layer._backend.saved_shape(layer._cell, layer.dtype, batch, layer.hidden_size))


def steps_between(memory: str | int | None, steps: int) -> int:
    """Steps from one kept state to the next, 0 where all are kept; an inference keeps the first and the last."""
    if memory is None:
        return steps
    if isinstance(memory, int):
        return min(memory, steps)
    return math.isqrt(steps - 1) + 1 if memory == "checkpoint" else 0
