"""RNN, GRU and LSTM: PyTorch's names, shapes and equations, with a tape that gives the gradient at every timestep."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from . import layer_norm
from ._arguments import UNBOUNDED, Array, choice, flag, number, size
from ._backend import Host, backend_of
from ._memory import with_room
from .layer import Layer
from .tape import EPS, Tape

_MOST_LAYERS = 10_000  # a slip, such as sizes in the wrong order, would keep the constructor busy for minutes
_MEMORY = ("full", "states", "checkpoint")
NONLINEARITIES = ("tanh", "relu", "sigmoid")
State = Array | tuple[Array, ...]


class Recurrent(Layer):
    """What the recurrent layers share. Sizes: T timesteps, B sequences, I inputs, H units, L layers, D directions."""

    _cell: str  # as the kernels call it
    _gates: ClassVar[int]
    _state_names: ClassVar[tuple[str, ...]] = ("hidden",)
    _constants: ClassVar[dict[str, float]] = {  # initial values that are not random
        "weight_ln_ih": 1,
        "weight_ln_hh": 1,
        "weight_ln_c": 1,
        "bias_ln_c": 0,
    }

    layer_norm: bool

    def __init__(self, config: dict[str, Any], dtype: Any, seed: Any) -> None:
        self.input_size: int = size("input_size", config["input_size"])
        self.hidden_size = size("hidden_size", config["hidden_size"])
        self.num_layers = size("num_layers", config["num_layers"], most=_MOST_LAYERS)
        self.bias = flag("bias", config["bias"])
        self.batch_first = flag("batch_first", config["batch_first"])
        self.dropout = number("dropout", config["dropout"], 0, 1)
        self.bidirectional = flag("bidirectional", config["bidirectional"])
        self.num_directions = 2 if self.bidirectional else 1
        self.reverse = flag("reverse", config["reverse"])
        if self.reverse and self.bidirectional:
            raise ValueError("reverse is for a layer of one direction, but bidirectional is True too")
        self.zoneout = self._check_zoneout(config["zoneout"])
        self.weight_dropout = number("weight_dropout", config["weight_dropout"], 0, 1)
        self.output_size = self.num_directions * self._width
        checked = {name: getattr(self, name) for name in config if hasattr(self, name)}  # plain ints, for `save`
        self._set_up({**config, **checked}, self._shapes(), dtype, seed)
        self._initialise()

    def _initialise(self) -> None:
        bound, uniform = self.hidden_size**-0.5, with_room(self._rng.uniform)  # as PyTorch
        for suffix in self._suffixes:
            for name in self._parameter_names:
                array, constant = self.parameters[name + suffix], self._constants.get(name)
                array[...] = uniform(-bound, bound, array.shape) if constant is None else constant

    @cached_property
    def _suffixes(self) -> list[str]:
        """The ends of the parameter names, in the order of ``h_n``: layers outside, directions inside."""
        directions = ["", "_reverse"][: self.num_directions]
        return [f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for index, suffix in enumerate(self._suffixes):
            below = self.input_size if index < self.num_directions else self._width * self.num_directions
            shapes |= {name + suffix: shape for name, shape in self._cell_shapes(below).items()}
        return shapes

    def _cell_shapes(self, below: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one layer and direction, as the kernels call them."""
        rows = self._gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, below), "weight_hh": (rows, self._width)}
        if self.bias:
            shapes["bias_ih"] = shapes["bias_hh"] = (rows,)
        if self.layer_norm:
            shapes["weight_ln_ih"] = shapes["weight_ln_hh"] = (rows,)
        return shapes

    @property
    def _width(self) -> int:
        """Features of h, and of one direction's output."""
        return self.hidden_size

    @cached_property
    def _parameter_names(self) -> tuple[str, ...]:
        """Of one layer and direction."""
        return tuple(self._cell_shapes(0))

    @cached_property
    def _state_widths(self) -> tuple[int, ...]:
        return (self._width, self.hidden_size)[: len(self._state_names)]

    def _gate_values(self, tape: Tape, index: int, gates: Array) -> None:
        """Write the gates (T, B, G*H) of one layer and direction; all but normalised ones the cell saves first."""
        by_gate = gates.reshape(*gates.shape[:2], self._gates, -1)
        if self.layer_norm:
            by_gate[...] = self._normalised_gates(tape, index, gates.shape)
        else:
            by_gate[...] = tape._saved_units(index)[:, :, : self._gates]

    @np.errstate(all="ignore")  # what was saved of the padding may be anything
    def _normalised_gates(self, tape: Tape, index: int, shape: tuple[int, ...]) -> Array:
        """The gates (T, B, G, H), again, from the products that the cell saves."""
        own = {name: tape._parameters[name + self._suffixes[index]] for name in self._parameter_names}
        saved, by_gate = tape._saved_units(index).astype(np.float64), (*shape[:2], self._gates, -1)
        parts = []
        for part, name in zip(np.split(saved, 2, axis=2), ("weight_ln_ih", "weight_ln_hh"), strict=True):
            rows, gain = part.reshape(-1, shape[2]), own[name].astype(np.float64)
            normal = layer_norm.forward(rows, None, gain, np.zeros_like(gain), 1.0, EPS)[1]
            parts.append(normal.reshape(by_gate))
        biases = [
            (own[name] if self.bias else np.zeros(shape[2])).astype(np.float64).reshape(self._gates, -1)
            for name in ("bias_ih", "bias_hh")
        ]
        return self._activated(*parts, *biases)

    def _activated(self, x: Array, r: Array, bias_ih: Array, bias_hh: Array) -> Array:
        """The gates (T, B, G, H) of the input's and the recurrent part of the pre-activations and of their biases."""
        raise NotImplementedError

    def _check_zoneout(self, zoneout: Any) -> float | tuple[float, ...]:
        if not isinstance(zoneout, tuple | list):
            return number("zoneout", zoneout, 0, 1)
        if len(zoneout) != len(self._state_names):
            raise ValueError(
                f"zoneout must be a number{' or a pair' if len(self._state_names) > 1 else ''} for "
                f"{type(self).__name__}, got {zoneout!r}"
            )
        return tuple(number(f"zoneout[{i}]", value, 0, 1) for i, value in enumerate(zoneout))

    def _zoneouts(self) -> tuple[float, ...]:
        """The probability of each state."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * len(self._state_names)

    def to(self, device: str, *, dtype: Any = None) -> Self:
        """Move the parameters to a device, in place.

        Parameters
        ----------
        device : {"cpu", "cuda"}
            On ``"cuda"`` calls take and return arrays of the current device: in come `throughtime.cuda.DeviceArray` and
            whatever has DLPack or ``__cuda_array_interface__``, out go `DeviceArray`, which have DLPack.
        dtype : str, optional
            ``"float32"``, ``"bfloat16"`` or ``"float16"`` on CUDA, ``"float32"`` or ``"float64"`` on the CPU; else the
            layer's own, or float32 where it comes from CUDA.

        Returns
        -------
        layer
            This one.

        Raises
        ------
        ValueError, TypeError
            If there is no such device, or the layer's dtype, such as float64, is not on it.
        RuntimeError
            If this build has no CUDA, or there is no device.
        """
        backend = backend_of(device)
        if dtype is None:
            dtype = "float32" if backend is Host and self._backend is not Host else self.dtype
        dtype = backend.layer_dtype(dtype)
        if backend is self._backend and dtype == self.dtype:
            return self
        for name, array in self.parameters.items():
            self.parameters[name] = backend.placed(self._backend.on_host(name, array), dtype)
        self._backend, self.dtype = backend, dtype
        self._config["dtype"] = str(dtype) if backend is Host else "float32"  # of what `load` makes
        return self

    def __call__(self, x: Array, state: Any = None, lengths: Any = None) -> tuple[Array, State]:
        """Inference: no dropout, nothing is saved.

        Parameters
        ----------
        x, state, lengths
            As for :meth:`forward`.

        Returns
        -------
        output : (T, B, D*H) array
        state : array or tuple of arrays, (L*D, B, H)
            Final state: ``h_n``, for the LSTM ``(h_n, c_n)``.
        """
        tape = self._run(x, state, lengths, None, None, training=False, output="all", memory=None)
        return tape.output, tape.final_state

    def forward(
        self,
        x: Array,
        state: Any = None,
        lengths: Any = None,
        *,
        resets: Any = None,
        masks: Mapping[str, Array] | None = None,
        training: bool = True,
        output: str = "all",
        memory: str | int = "full",
    ) -> Tape:
        """Run over all timesteps and keep what :meth:`Tape.backward` needs.

        Parameters
        ----------
        x : (T, B, I) array
            Input, in the layer's dtype; ``(B, T, I)`` with ``batch_first``; ``(T, I)`` unbatched. The tape keeps a
            reference: do not change it before the backward.
        state : (L*D, B, H) array, or a pair of them for the LSTM, optional
            Initial state ``h_0`` or ``(h_0, c_0)``; zeros when None.
        lengths : (B,) integers, optional
            Each sequence's own length, in any order, 0 allowed. Beyond it the output is zero and the state stands
            still, whatever the padding holds.
        resets : (T, B) bool array, optional
            True on the first step of an episode: the forward direction starts from zero there, the reverse direction on
            the step before it. No gradient crosses.
        masks : mapping of str to bool array, optional
            Masks in place of random ones, as in ``tape.masks``: ``dropout_l0 (T, B, D*H)``, true where dropped;
            ``zoneout_h_l0``, ``zoneout_c_l0 (T, B, H)``, true where a unit keeps its old state;
            ``weight_hh_l0 (G*H, H)``, true where dropped.
        training : bool
            False switches dropout off, and takes the expectation of zoneout.
        output : {"all", "last"}
            With ``"last"``, ``tape.output (B, D*H)`` is what ``h_n`` holds for the last layer, directions side by side.
        memory : {"full", "states", "checkpoint"} or int
            What is kept for the backward: with ``"full"`` all that it reads; with ``"states"`` the states, from which
            the gates are computed again; with ``"checkpoint"`` or a number k the state of every k-th step (about the
            square root of T when not given), from which all between is computed again, at least 512 rows (steps times
            sequences) at a time. The gradients are the same up to rounding.

        Returns
        -------
        Tape

        Raises
        ------
        TypeError
            If an array has another dtype than the layer; nothing is cast.
        ValueError
            If a size does not fit, or T is 0.

        Examples
        --------
        >>> import numpy as np, throughtime as tt
        >>> x = np.random.default_rng(0).standard_normal((1000, 32, 64), dtype=np.float32)
        >>> tape = tt.GRU(64, 16, seed=0).forward(x)
        >>> tape.output.shape, tape.final_state.shape
        ((1000, 32, 16), (1, 32, 16))
        """
        choice("output", output, ("all", "last"))
        memory, training = check_memory(memory), flag("training", training)
        return self._run(x, state, lengths, resets, masks, training=training, output=output, memory=memory)

    def _run(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        resets: Any,
        masks: Mapping[str, Array] | None,
        *,
        training: bool,
        output: str,
        memory: str | int | None,
    ) -> Tape:
        x, batched = self._check_x(x)
        self._check_parameters()
        steps, batch = x.shape[:2]
        return Tape(
            self,
            x,
            batched=batched,
            state=self._check_state("state", state, batch, batched),
            lengths=self._backend.sequence_lengths(lengths, steps, batch, batched),
            resets=self._check_resets(resets, steps, batch, batched),
            masks=self._masks(masks, (steps, batch), batched, training),
            last=output == "last",
            memory=memory,
        )

    def _check_x(self, x: Any, name: str = "x") -> tuple[Array, bool]:
        """`x` as (T, B, I), whether it came with a batch axis."""
        x = self._backend.as_array(name, x)
        self._backend.check_dtype(name, x, self.dtype)
        if x.ndim not in (2, 3):
            layout = "B, T" if self.batch_first else "T, B"
            expected = f"({layout}, {self.input_size}), or (T, {self.input_size}) unbatched"
            raise ValueError(f"{name} has shape {x.shape}, expected {expected}")
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"{name} has {x.shape[-1]} features in its last axis, but this {type(self).__name__} was built "
                f"with input_size={self.input_size} ({name}.shape == {x.shape})"
            )
        batched = x.ndim == 3
        major = self._time_major(x, batched)
        if major.shape[0] == 0:
            raise ValueError(f"{name} has no timesteps ({name}.shape == {x.shape}), expected T >= 1")
        return self._backend.features_together(major), batched

    def _time_major(self, array: Array, batched: bool) -> Array:
        """A (T, B, F) view of an array in the caller's layout; its own inverse for batched arrays."""
        if not batched:
            return array[:, None]
        return array.swapaxes(0, 1) if self.batch_first else array

    def _check_state(self, name: str, state: Any, batch: int, batched: bool, *, partial: bool = False) -> list[Array]:
        """The states as contiguous (L*D, B, H) arrays, zeros for None; `partial` lets one of a pair be None."""
        backend, count = self._backend, self.num_layers * self.num_directions
        shapes = [(count, batch, width) for width in self._state_widths]
        if state is None:
            return [backend.zeros(shape, self.dtype) for shape in shapes]
        labels = [name]
        if len(self._state_names) > 1:
            if not isinstance(state, tuple | list):
                raise TypeError(
                    f"{name} must be a pair (h_0, c_0) for {type(self).__name__}, got {type(state).__name__}"
                )
            if len(state) != len(self._state_names):
                raise ValueError(
                    f"{name} must be a pair (h_0, c_0) for {type(self).__name__}, got {len(state)} entries"
                )
            labels = [f"{name}[{i}]" for i in range(len(state))]
        else:
            state = (state,)
        arrays = []
        for label, value, shape in zip(labels, state, shapes, strict=True):
            if value is None and partial:
                arrays.append(backend.zeros(shape, self.dtype))
                continue
            given = backend.float_array(label, value, self.dtype, shape if batched else (shape[0], shape[2]))
            arrays.append(backend.contiguous(given).reshape(shape))
        return arrays

    def _check_resets(self, resets: Any, steps: int, batch: int, batched: bool) -> Array | None:
        if resets is None:
            return None
        checked = self._backend.bool_array("resets", resets, (steps, batch) if batched else (steps,))
        return checked.reshape(steps, batch)

    def _masks(
        self, given: Mapping[str, Array] | None, sizes: tuple[int, int], batched: bool, training: bool
    ) -> dict[str, Array]:
        """The masks in use: those given, or new ones."""
        wanted = self._mask_shapes(sizes) if training else {}
        if not isinstance(given, Mapping | None):
            raise TypeError(f"masks must be a dict of bool arrays, got {type(given).__name__}")
        unexpected = sorted(map(str, set(given or ()) - set(wanted)))
        if unexpected:
            raise ValueError(
                f"masks has unexpected {', '.join(unexpected)}; expected {', '.join(wanted) or 'none'} "
                f"(dropout={self.dropout}, zoneout={self.zoneout}, weight_dropout={self.weight_dropout}, "
                f"num_layers={self.num_layers}, training={training})"
            )
        masks = {}
        for name, (shape, probability) in wanted.items():
            if given and name in given:
                of_user = shape if batched or len(shape) == 2 else (shape[0], shape[2])
                masks[name] = self._backend.bool_array(f"masks[{name!r}]", given[name], of_user).reshape(shape)
            else:
                masks[name] = self._backend.random_mask(self._rng, shape, probability)
        return masks

    def _mask_shapes(self, sizes: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], float]]:
        """Shape and probability of every mask that training needs."""
        wanted: dict[str, tuple[tuple[int, ...], float]] = {}
        if self.dropout:
            shape = (*sizes, self.num_directions * self._width)
            wanted |= {f"dropout_l{layer}": (shape, self.dropout) for layer in range(self.num_layers - 1)}
        for suffix in self._suffixes:
            for state, width, probability in zip("hc", self._state_widths, self._zoneouts(), strict=False):
                if probability:
                    wanted[f"zoneout_{state}{suffix}"] = ((*sizes, width), probability)
            if self.weight_dropout:
                name = "weight_hh" + suffix
                wanted[name] = (self._shapes_of_parameters[name], self.weight_dropout)
        return wanted


def check_memory(memory: Any) -> str | int:
    """`memory` as :meth:`Recurrent.forward` takes it."""
    if isinstance(memory, int | np.integer):
        return size("memory", memory, most=UNBOUNDED)
    if not isinstance(memory, str) or memory not in _MEMORY:
        kind = ValueError if isinstance(memory, str) else TypeError
        raise kind(f"memory must be {', '.join(map(repr, _MEMORY))} or a number of steps, got {memory!r}")
    return memory


class RNN(Recurrent, kind="RNN"):
    """Elman network: ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` (Elman 1990).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        L, at most 10,000; layer k > 0 reads the output of layer k - 1.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        f. Where ``"sigmoid"`` is steepest its slope is 1/4: gradients vanish the sooner.
    bias : bool
        Whether ``b_ih`` and ``b_hh`` exist.
    batch_first : bool
        Input, output and their gradients are ``(B, T, F)``; nothing else changes.
    dropout : float
        Probability of dropping an output of a layer but the last, in training.
    bidirectional : bool
        A second direction (suffix ``_reverse``) runs from the last timestep to the first.
    reverse : bool
        The only direction runs from the last timestep to the first, with `lengths` from each sequence's own last one;
        the output stands where the input does. The parameters have no suffix.
    layer_norm : bool
        ``h_t = f(LN(W_ih x_t) + LN(W_hh h_{t-1}) + b_ih + b_hh)``, each LN over all units with a gain ``weight_ln_ih``,
        ``weight_ln_hh (H,)``, which starts as 1, and eps 1e-5. Ba et al. (2016, arXiv:1607.06450) normalise the sum of
        both products in this network (equation 4), and each product in LSTM and GRU (equations 20 to 25); here it is
        each product in all three.
    zoneout : float
        Probability that a unit keeps its old state at a step, in training; at inference the new state is the
        expectation, ``p old + (1 - p) new`` (Krueger et al. 2017).
    weight_dropout : float
        Probability of dropping an entry of ``weight_hh``, one mask per forward, in training; the others are scaled by
        ``1/(1-p)`` (Merity et al. 2018).
    dtype : {"float32", "float64"}
    seed : int, optional
        Of the initial weights, uniform in ``+-1/sqrt(H)`` as PyTorch's, and of the masks.

    Examples
    --------
    >>> tt.RNN(8, 16, nonlinearity="relu")
    RNN(8, 16, nonlinearity='relu')
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reverse: bool = False,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        self.nonlinearity = choice("nonlinearity", nonlinearity, NONLINEARITIES)
        config = _config(locals())  # before there are other locals
        self.layer_norm = flag("layer_norm", layer_norm)
        variant = "_layer_norm" if self.layer_norm else "_kept" if zoneout else ""
        self._cell = f"rnn_{self.nonlinearity}{variant}"
        super().__init__(config, dtype, seed)

    def _gate_values(self, tape: Tape, index: int, gates: Array) -> None:
        if self.zoneout:
            super()._gate_values(tape, index, gates)
        else:  # the state is the activation
            gates[...] = tape._states[0][index, 1:-1]

    def _activated(self, x: Array, r: Array, bias_ih: Array, bias_hh: Array) -> Array:
        z = bias_ih + bias_hh + x + r
        if self.nonlinearity == "relu":
            return np.maximum(z, 0)
        return np.tanh(z) if self.nonlinearity == "tanh" else _sigmoid(z)


class GRU(Recurrent, kind="GRU"):
    """Gated recurrent unit (Cho et al. 2014), in PyTorch's and cuDNN's form, gates in the order r, z, n.

    ``r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)``, ``z`` likewise, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
    ``h' = (1 - z) n + z h``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse, zoneout, weight_dropout
        As for :class:`RNN`.
    dtype, seed
        As for :class:`RNN`.
    reset_after : bool
        Whether r multiplies after the recurrent product, as above; False is the original,
        ``n = tanh(W_in x + b_in + W_hn (r h) + b_hn)``.
    layer_norm : bool
        ``LN(W_ih x)`` and ``LN(W_hh h)`` in place of both products, each LN over all gates with a gain ``weight_ln_ih``,
        ``weight_ln_hh (3*H,)``, which starts as 1, and eps 1e-5; biases are added after that, and r multiplies
        ``LN(W_hh h)_n + b_hn``. Ba et al. (2016, arXiv:1607.06450, equations 23 to 25) normalise each product as well,
        but those of n by themselves. It goes with ``reset_after=True`` only: the original GRU's ``W_hn`` has a product
        of its own.

    Examples
    --------
    >>> tt.GRU(8, 16, num_layers=2)
    GRU(8, 16, num_layers=2)
    """

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reverse: bool = False,
        reset_after: bool = True,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        config = _config(locals())  # before there are other locals
        self.reset_after = flag("reset_after", reset_after)
        self.layer_norm = flag("layer_norm", layer_norm)
        self._cell = gru_cell(reset_after=self.reset_after, layer_norm=self.layer_norm)
        super().__init__(config, dtype, seed)

    def _activated(self, x: Array, r: Array, bias_ih: Array, bias_hh: Array) -> Array:
        x, r = x + bias_ih, r + bias_hh
        gates = _sigmoid(x + r)
        gates[:, :, 2] = np.tanh(x[:, :, 2] + gates[:, :, 0] * r[:, :, 2])
        return gates


class LSTM(Recurrent, kind="LSTM"):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000), gates in the order i, f, g, o.

    ``i, f, o = sigmoid(W x + b_ih + W_hh h + b_hh)``, ``g = tanh(...)``, ``c' = f c + i g``, ``h' = o tanh(c')``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse, weight_dropout, dtype, seed
        As for :class:`RNN`.
    proj_size : int
        P: ``h' = W_hr (o tanh(c'))`` has P features (Sak et al. 2014); 0 for none.
    peephole : bool
        i and f see ``weight_ci c``, ``weight_cf c``, o sees ``weight_co c'`` (Gers and Schmidhuber 2000).
    layer_norm : bool
        Gates from ``LN(W_ih x) + LN(W_hh h) + b_ih + b_hh``, each LN over all gates with a gain ``weight_ln_ih``,
        ``weight_ln_hh``; ``h' = o tanh(LN(c'))`` with ``weight_ln_c``, ``bias_ln_c`` (Ba et al. 2016, arXiv:1607.06450,
        equations 20 to 22). Gains start as 1, where gradients grow by some 4 % a step (H = 256); with ``weight_ln_hh``
        at 0.5 they fall by 17 %. Of these three options one may be chosen.
    zoneout : float or pair of float
        As for :class:`RNN`; a pair is for h and c. h is computed from the c before its zoneout.

    Examples
    --------
    >>> tt.LSTM(8, 16, bidirectional=True)
    LSTM(8, 16, bidirectional=True)
    >>> sorted(tt.LSTM(8, 16, proj_size=4).parameters)
    ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_hr_l0', 'weight_ih_l0']
    """

    _gates = 4
    _state_names = ("hidden", "cell")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        reverse: bool = False,
        peephole: bool = False,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        config = _config(locals())  # before there are other locals
        self.proj_size = size("proj_size", proj_size, least=0)
        self.peephole = flag("peephole", peephole)
        self.layer_norm = flag("layer_norm", layer_norm)
        chosen = {"proj_size": self.proj_size, "peephole": self.peephole, "layer_norm": self.layer_norm}
        chosen = {name: value for name, value in chosen.items() if value}
        if len(chosen) > 1:
            given = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
            raise ValueError(f"an LSTM has at most one of proj_size, peephole and layer_norm, got {given}")
        variant = {"proj_size": "_projected", "peephole": "_peephole", "layer_norm": "_layer_norm"}
        self._cell = "lstm" + "".join(variant[name] for name in chosen)
        if self.proj_size >= size("hidden_size", hidden_size):
            raise ValueError(f"proj_size must be smaller than hidden_size={hidden_size}, got {self.proj_size}")
        super().__init__(config, dtype, seed)

    @property
    def _width(self) -> int:
        return self.proj_size or self.hidden_size

    def _cell_shapes(self, below: int) -> dict[str, tuple[int, ...]]:
        units, shapes = self.hidden_size, super()._cell_shapes(below)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, units)
        if self.peephole:
            shapes |= dict.fromkeys(("weight_ci", "weight_cf", "weight_co"), (units,))
        if self.layer_norm:
            shapes |= dict.fromkeys(("weight_ln_c", "bias_ln_c"), (units,))
        return shapes

    def _activated(self, x: Array, r: Array, bias_ih: Array, bias_hh: Array) -> Array:
        z = bias_ih + bias_hh + x + r
        gates = _sigmoid(z)
        gates[:, :, 2] = np.tanh(z[:, :, 2])
        return gates


def gru_cell(*, reset_after: bool, layer_norm: bool) -> str:
    """The kernels' name of a GRU."""
    if layer_norm and not reset_after:
        raise ValueError(
            "layer_norm=True was given with reset_after=False, but a GRU with layer normalisation resets after the "
            "recurrent product: expected reset_after=True or layer_norm=False"
        )
    return "gru_layer_norm" if layer_norm else "gru" if reset_after else "gru_original"


def _sigmoid(z: Array) -> Array:
    gates: Array = np.reciprocal(1 + np.exp(-z))
    return gates


def _config(arguments: dict[str, Any]) -> dict[str, Any]:
    """A constructor's own arguments, for `repr`, `save` and the base class."""
    return {key: value for key, value in arguments.items() if key not in ("self", "dtype", "seed", "__class__")}
