"""RNN, GRU and LSTM: PyTorch's names, shapes and equations, with a tape that gives the gradient at every timestep."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np

from .._arguments import Array, ArrayLike, choice, flag
from .._memory import with_room
from .._random import MaskStream
from ..backend.choose import backend_of
from ..backend.host import Host
from ..layers.layer import Layer
from .architecture import CONSTANTS, Architecture
from .arguments import Checks, check_memory, describe
from .forward import run_forward
from .record import Record, State
from .tape import Tape


class Recurrent(Layer):
    """Base of the recurrent layers. Sizes: T timesteps, B sequences, I inputs, H units, L layers, D directions."""

    input_size: int
    output_size: int
    hidden_size: int
    num_layers: int
    num_directions: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    reverse: bool
    zoneout: float | tuple[float, ...]
    weight_dropout: float
    _masks: MaskStream

    def __init__(self, config: dict[str, Any], dtype: Any, seed: Any) -> None:
        checked, architecture = describe(self._kind, config, type(self).__name__)
        vars(self).update(checked, architecture=architecture)
        self.num_directions, self.output_size = architecture.num_directions, architecture.output_size
        plain = {name: checked[name] for name in config}
        rng = self._set_up(plain, architecture.parameter_shapes, dtype, seed)
        self._initialise(rng)
        self._masks = MaskStream.after(rng)

    @cached_property
    def architecture(self) -> Architecture:
        """The description of this layer for forward and backward."""
        return describe(self._kind, vars(self), type(self).__name__)[1]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in vars(self).get("_config", ()):  # an option, which is part of the architecture
            vars(self).pop("architecture", None)

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle, without the architecture, which follows from the options."""
        state = {name: value for name, value in super().__getstate__().items() if name != "architecture"}
        return {**state, "_masks": copy.copy(self._masks)}  # a shallow copy draws its masks by itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state; pickles from before 0.1.0 have one generator for weights and masks."""
        if "_rng" in state:
            state = {**state, "_masks": MaskStream.after(state["_rng"])}
        super().__setstate__(state)

    def _initialise(self, rng: np.random.Generator) -> None:
        bound, uniform = self.hidden_size**-0.5, with_room(rng.uniform)  # as PyTorch
        for own in self.architecture.own_parameters:
            for name, full in own.items():
                array, constant = self.parameters[full], CONSTANTS.get(name)
                array[...] = uniform(-bound, bound, array.shape) if constant is None else constant

    def to(self, device: str, *, dtype: Any = None) -> Self:
        """Move the parameters to a device, in place.

        Parameters
        ----------
        device : {"cpu", "cuda"}
            With ``"cuda"``, calls take and return arrays on the current device: they accept
            `throughtime.cuda.DeviceArray` and objects with DLPack or ``__cuda_array_interface__``, and return
            `DeviceArray`, which supports DLPack.
        dtype : str, optional
            ``"float32"``, ``"bfloat16"`` or ``"float16"`` on CUDA, ``"float32"`` or ``"float64"`` on the CPU. Default:
            the layer's dtype, or float32 when moving from CUDA to the CPU.

        Returns
        -------
        layer
            The layer itself.

        Raises
        ------
        ValueError, TypeError
            If the name of the device is unknown, or it does not support the dtype (float64 on CUDA).
        RuntimeError
            If this build has no CUDA, or there is no CUDA device.
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
        self._config["dtype"] = str(dtype) if backend is Host else "float32"  # dtype of the layer that `load` makes
        return self

    def __call__(self, x: ArrayLike, state: Any = None, lengths: Any = None) -> tuple[Array, State]:
        """Inference: no dropout, and nothing is stored for a backward.

        Parameters
        ----------
        x, state, lengths
            As for :meth:`forward`.

        Returns
        -------
        output : (T, B, D*H) array
        state : array or tuple of arrays, (L*D, B, H)
            Final state: ``h_n``, or ``(h_n, c_n)`` for the LSTM.
        """
        tape = Tape(self._run(x, state, lengths, None, None, training=False, memory=None), id(self))
        return tape.output, tape.final_state

    def forward(
        self,
        x: ArrayLike,
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
            Length of each sequence, in any order, 0 allowed. Beyond it the output is zero and the state stays
            unchanged, whatever the padding contains.
        resets : (T, B) bool array, optional
            True on the first step of an episode: the forward direction starts from zero there, the reverse direction on
            the step before it. No gradient crosses a reset.
        masks : mapping of str to bool array, optional
            Masks to use instead of random ones, as in ``tape.masks``: ``dropout_l0 (T, B, D*H)``, true where dropped;
            ``zoneout_h_l0``, ``zoneout_c_l0 (T, B, H)``, true where a unit keeps its old state;
            ``weight_hh_l0 (G*H, H)``, true where dropped.
        training : bool
            False disables dropout and replaces zoneout by its expectation.
        output : {"all", "last"}
            With ``"last"``, ``tape.output (B, D*H)`` is ``h_n`` of the last layer, directions concatenated.
        memory : {"full", "states", "checkpoint"} or int
            Values stored for the backward: with ``"full"``, all that it reads; with ``"states"``, the states, from
            which it recomputes the gates; with a number k, the state of every k-th step, from which it recomputes the
            rest, at least 512 rows (steps times sequences) at a time. ``"checkpoint"`` chooses k, about the square root
            of T. The gradients are equal up to rounding.

        Returns
        -------
        Tape

        Raises
        ------
        TypeError
            If the dtype of an array differs from the layer's; nothing is cast.
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
        last = output == "last"
        record = self._run(x, state, lengths, resets, masks, training=training, memory=memory, last=last)
        return Tape(record, id(self))

    def _run(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        resets: Any,
        masks: Mapping[str, Array] | None,
        *,
        training: bool,
        memory: str | int | None,
        last: bool = False,
    ) -> Record:
        self._check_parameters()
        checks = Checks(self.architecture, self._backend, self.dtype)
        inputs = checks.inputs(x, state, lengths, resets)
        return run_forward(
            self.architecture,
            self._backend,
            inputs,
            parameters=self.parameters if memory is None else _copied(self.parameters),
            masks=checks.masks(masks, inputs, training, self._masks),
            memory=memory,
            last=last,
        )


@with_room
def _copied(parameters: dict[str, Array]) -> dict[str, Array]:
    """Copies, because the parameters may change before the backward."""
    return {name: array.copy() for name, array in parameters.items()}


class RNN(Recurrent, kind="RNN"):
    """Elman network: ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` (Elman 1990).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        L, at most 10,000; layer k > 0 reads the output of layer k - 1.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        f. The slope of ``"sigmoid"`` is at most 1/4, so its gradients vanish sooner.
    bias : bool
        Whether ``b_ih`` and ``b_hh`` exist.
    batch_first : bool
        Input, output and their gradients are ``(B, T, F)``; nothing else changes.
    dropout : float
        Probability of dropping an output of any layer except the last, in training.
    bidirectional : bool
        A second direction (suffix ``_reverse``) runs from the last timestep to the first.
    reverse : bool
        The only direction runs from the last timestep to the first; with `lengths`, from each sequence's last valid
        one. Outputs keep the order of the inputs. The parameters have no suffix.
    layer_norm : bool
        ``h_t = f(LN(W_ih x_t) + LN(W_hh h_{t-1}) + b_ih + b_hh)``, each LN over all units with a gain ``weight_ln_ih``,
        ``weight_ln_hh (H,)``, which starts as 1, and eps 1e-5. Ba et al. (2016, arXiv:1607.06450) normalise the sum of
        both products in this network (equation 4), and each product in LSTM and GRU (equations 20 to 25). Here each
        product is normalised in all three.
    zoneout : float
        Probability that a unit keeps its old state at a step, in training; at inference the new state is the
        expectation, ``p old + (1 - p) new`` (Krueger et al. 2017).
    weight_dropout : float
        Probability of dropping an entry of ``weight_hh``, one mask per forward, in training; the others are scaled by
        ``1/(1-p)`` (Merity et al. 2018).
    dtype : {"float32", "float64"}
    seed : int, optional
        Seed of the initial weights, uniform in ``+-1/sqrt(H)`` as in PyTorch, and of the masks.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtype is not one of these.
    ValueError
        If a size is below 1, a probability is outside [0, 1], a name is unknown, or `bidirectional` and `reverse`
        are both set.

    Examples
    --------
    >>> tt.RNN(8, 16, nonlinearity="relu")
    RNN(8, 16, nonlinearity='relu')
    """

    nonlinearity: str
    layer_norm: bool

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
        super().__init__(_config(locals()), dtype, seed)


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
        ``LN(W_ih x)`` and ``LN(W_hh h)`` replace the two products, each LN over all gates with a gain ``weight_ln_ih``,
        ``weight_ln_hh (3*H,)``, which starts as 1, and eps 1e-5. Biases are added afterwards, and r multiplies
        ``LN(W_hh h)_n + b_hn``. Ba et al. (2016, arXiv:1607.06450, equations 23 to 25) also normalise each product, but
        those of n separately. It needs ``reset_after=True``: ``W_hn`` of the original GRU has a separate product.

    Raises
    ------
    TypeError, ValueError
        As for :class:`RNN`, and if `layer_norm` is set without `reset_after`.

    Examples
    --------
    >>> tt.GRU(8, 16, num_layers=2)
    GRU(8, 16, num_layers=2)
    """

    reset_after: bool
    layer_norm: bool

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
        super().__init__(_config(locals()), dtype, seed)


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
        equations 20 to 22). Gains start as 1; gradients then grow by about 4 % per step (H = 256). With
        ``weight_ln_hh`` at 0.5 they shrink by 17 %. At most one of these three options may be set.
    zoneout : float or pair of float
        As for :class:`RNN`; a pair is for h and c. h is computed from c before c's zoneout.

    Raises
    ------
    TypeError, ValueError
        As for :class:`RNN`, and if more than one of `proj_size`, `peephole` and `layer_norm` is set.

    Examples
    --------
    >>> tt.LSTM(8, 16, bidirectional=True)
    LSTM(8, 16, bidirectional=True)
    >>> sorted(tt.LSTM(8, 16, proj_size=4).parameters)
    ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_hr_l0', 'weight_ih_l0']
    """

    proj_size: int
    peephole: bool
    layer_norm: bool

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
        super().__init__(_config(locals()), dtype, seed)


def _config(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, for `repr`, `save` and the base class."""
    return {key: value for key, value in arguments.items() if key not in ("self", "dtype", "seed", "__class__")}
