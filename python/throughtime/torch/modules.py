"""RNN, LSTM and GRU: torch's own classes, run by throughtime's kernels."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import Parameter, init
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._arguments import choice
from ..recurrent.architecture import CONSTANTS, states_of
from ..recurrent.arguments import NONLINEARITIES
from . import kernels, operators
from .base import Base, as_node, check_is_tensor, kind_of, plain
from .compiling import is_traced, let_dynamo_trace
from .function import RecurrentFunction
from .kernels import Call
from .places import PLACES, check_tensor, check_weight
from .plan import call_text, layer_text, plan_of
from .precision import autocast_types, is_medium
from .unsupported import applied, check_transforms

State = Tensor | tuple[Tensor, ...]


class Recurrent(Base, RNNBase):
    """Base of the recurrent modules. Sizes: T timesteps, B sequences, I inputs, H units, L layers, D directions."""

    _kind: ClassVar[str]
    _states: ClassVar[tuple[str, ...]]
    _own: ClassVar[dict[str, Any]] = {"zoneout": 0.0, "weight_dropout": 0.0, "memory": "full"}  # not torch's options
    _torchs = ("num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    _plain = frozenset(["input_size", "hidden_size", *_torchs, *_own, "reset_after", "peephole", "layer_norm"])

    zoneout: float | tuple[float, float]
    weight_dropout: float
    memory: str | int

    # Set up

    def _set_up(self, **own: Any) -> None:
        """After torch's constructor, set the options that torch lacks and register their parameters."""
        for name, value in own.items():
            setattr(self, name, value)
        self._text = layer_text(self._kind, self._options())
        plan = plan_of(call_text(self._text, torch.float32, self.batch_first, self.memory))  # also checks the options
        self._names, shapes = plan.names, plan.architecture.parameter_shapes
        bound = self.hidden_size**-0.5
        like = next(self.parameters())
        for name in self._names:
            if not hasattr(self, name):
                empty = torch.empty(shapes[name], dtype=like.dtype, device=like.device)
                self.register_parameter(name, Parameter(empty))
                init.uniform_(getattr(self, name), -bound, bound)
        self._set_constants()

    def _set_constants(self) -> None:
        """Set the initial values that are not random: those of layer normalisation."""
        for name, parameter in self.named_parameters(recurse=False):
            constant = CONSTANTS.get(name.rpartition("_l")[0])
            if constant is not None:
                init.constant_(parameter, constant)

    def reset_parameters(self) -> None:
        """Draw new initial values, as torch does."""
        super().reset_parameters()
        self._set_constants()

    def flatten_parameters(self) -> None:
        """Do nothing: cuDNN needs all weights in one buffer, these kernels do not."""

    @classmethod
    def _of(cls, module: RNNBase) -> Self:
        """A module that shares the parameters, hooks and all other attributes of a torch module."""
        ours = cls.__new__(cls)
        ours.__dict__.update(vars(module))
        for name in ("_parameters", "_buffers", "_modules", "_flat_weights"):
            ours.__dict__[name] = vars(module)[name].copy()
        for name in cls._plain & vars(module).keys():
            setattr(ours, name, getattr(module, name))
        ours._set_up(**cls._own)
        return ours

    def extra_repr(self) -> str:
        """Torch's text, and our options that differ from their defaults."""
        chosen = [
            f"{name}={getattr(self, name)!r}" for name, usual in self._own.items() if getattr(self, name) != usual
        ]
        return ", ".join([super().extra_repr(), *chosen])

    def __setattr__(self, name: str, value: Any) -> None:
        """Options may be changed later, as in torch's modules."""
        super().__setattr__(name, value)
        if "_text" in self.__dict__ and name in self._options():  # text: the compiler may treat numbers as variables
            self.__dict__["_text"] = layer_text(self._kind, self._options())

    def _options(self) -> dict[str, Any]:
        """The arguments of the NumPy layer's constructor."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bias": self.bias,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
            "zoneout": self.zoneout,
            "weight_dropout": self.weight_dropout,
        }

    # Calls

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Run over all timesteps.

        Parameters
        ----------
        input : (T, B, I) tensor or PackedSequence
            ``(B, T, I)`` with ``batch_first``; ``(T, I)`` unbatched.
        hx : (L*D, B, H) tensor, or for the LSTM a pair of them, optional
            Initial state; zeros when None.

        Returns
        -------
        output : (T, B, D*H) tensor or PackedSequence
            In the layout of the input.
        state : tensor or pair of tensors
            Final state, as `hx`.

        Raises
        ------
        TypeError, ValueError
            If a dtype, device or size does not fit.
        NotImplementedError
            For devices, dtypes and transforms without kernels.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if isinstance(input, Proxy):
            return as_node(self, input, hx)
        return self._run(input, hx, None, self.batch_first)

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, State]:
        """Run as (T, B, I) with lengths: the kernels take sequences in any order, so states need no sorting."""
        # Pad in sorted order: torch has the sorted lengths on the CPU, so nothing waits for the GPU's permutation.
        padded, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        own_lengths = lengths.to(padded.device, non_blocking=True)
        if packed.unsorted_indices is not None:
            padded = padded.index_select(1, packed.unsorted_indices)
            own_lengths = own_lengths.index_select(0, packed.unsorted_indices)
        output, state = self._run(padded, hx, own_lengths, False)
        if packed.sorted_indices is not None:
            output = output.index_select(1, packed.sorted_indices)
        data = pack_padded_sequence(output, lengths).data
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), state

    def _run(self, x: Tensor, hx: Any, lengths: Tensor | None, batch_first: bool) -> tuple[Tensor, State]:
        x, state, weights, types = self._checked(x, hx, packed=lengths is not None)
        masks = self._masks(x, batch_first) if self.training else []
        needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *state, *weights))
        device, memory = x.device.type, self.memory if needs_grad else None
        text, medium = call_text(self._text, x.dtype, batch_first, memory, device), is_medium(device)
        if is_traced(x):
            results = operators.recurrent(x, state, weights, lengths, masks, text, medium)
        else:
            check_transforms()
            plan = plan_of(text)
            if needs_grad:
                results = applied(RecurrentFunction, plan, medium, lengths, masks, len(state), x, *state, *weights)
            else:
                results = kernels.forward(Call(plan, medium, weights, lengths, masks), x, state)
        results = [result.to(dtype) for result, dtype in zip(results, types, strict=False)] if types else results
        final = tuple(results[1 : 1 + len(self._states)])
        return results[0], final[0] if len(final) == 1 else final

    def _checked(
        self, x: Tensor, hx: Any, *, packed: bool
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[torch.dtype]]:
        """Input, initial states (none for zeros) and weights, under autocast in the type of the weights.

        The last entry lists the types of the results; it is empty if they have that of the weights.
        """
        weights = self._weights()
        first = weights[0]
        check_weight(self._names[0], first)
        check_is_tensor("input", x, "a tensor or a PackedSequence")
        state = [] if hx is None else self._state(hx)
        types: list[torch.dtype] = []
        if torch.is_autocast_enabled(first.device.type):
            if PLACES[first.device.type].autocasts_results:
                projected = bool(self.proj_size)
                types = autocast_types(self._kind, first, x, state, packed=packed, projected=projected)
            x, state = x.to(first.dtype), [tensor.to(first.dtype) for tensor in state]
        check_tensor("input", x, first)
        if x.dim() not in (2, 3):
            layout, size = "(B, T" if self.batch_first else "(T, B", self.input_size
            expected = f"{layout}, {size}), or (T, {size}) unbatched"
            raise ValueError(f"input has shape {tuple(x.shape)}, expected {expected}")
        for tensor in state:
            check_tensor("hx", tensor, first)
        for name, tensor in zip(self._names, weights, strict=True):
            check_tensor(name, tensor, first)
        return x, state, weights, types

    def _weights(self) -> list[Tensor]:
        """The weights in the plan's order, as attributes: parametrizations and `functional_call` replace these."""
        return [getattr(self, name) for name in self._names]

    def _state(self, hx: Any) -> list[Tensor]:
        check_is_tensor("hx", hx, f"a tensor for {self._kind}")
        return [hx]

    def _masks(self, x: Tensor, batch_first: bool) -> list[Tensor]:
        """New masks from torch's generator, in the plan's order; true drops a value or keeps an old state."""
        if not (self.dropout or self.zoneout or self.weight_dropout):
            return []
        steps, batch = (x.shape[0], 1) if x.dim() == 2 else (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        directions, width = 1 + self.bidirectional, self.proj_size or self.hidden_size
        wanted: list[tuple[tuple[int, ...], float]] = []
        if self.dropout:
            wanted += [((steps, batch, directions * width), self.dropout)] * (self.num_layers - 1)
        pair = self.zoneout if isinstance(self.zoneout, tuple | list) else (self.zoneout,) * len(self._states)
        widths = (width,) + (self.hidden_size,) * (len(self._states) - 1)
        for _ in range(self.num_layers * directions):
            sizes = zip(widths, pair, strict=True)
            wanted += [((steps, batch, size), probability) for size, probability in sizes if probability]
            if self.weight_dropout:
                wanted.append((tuple(getattr(self, self._names[1]).shape), self.weight_dropout))
        return [torch.empty(shape, dtype=torch.bool, device=x.device).bernoulli_(p) for shape, p in wanted]


class RNN(Recurrent, torch.nn.RNN):
    """``torch.nn.RNN`` on throughtime's kernels; see :class:`throughtime.RNN` for the equations.

    Parameters
    ----------
    input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype
        As for ``torch.nn.RNN``, with NumPy scalars accepted too. Dtypes are float32, float64, bfloat16 and float16 on
        the CPU, which computes the last two in float32, and float32, bfloat16 and float16 on CUDA. Dropout draws from
        torch's generator, but different masks than torch.nn.RNN. `nonlinearity` may also be ``"sigmoid"``.
    layer_norm : bool
        As for :class:`throughtime.RNN`, with parameters of the same names; torch.nn.RNN does not have them.
    zoneout, weight_dropout : float
        As for :class:`throughtime.RNN`.
    memory : {"full", "states", "checkpoint"} or int
        Values stored for the backward, as for :meth:`throughtime.RNN.forward`.

    Raises
    ------
    TypeError, ValueError
        As for ``torch.nn.RNN`` and :class:`throughtime.RNN`.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> rnn = throughtime.torch.RNN(8, 16, nonlinearity="relu", memory="states")
    >>> rnn
    throughtime.torch.RNN(8, 16, memory='states')
    >>> rnn(torch.randn(10, 8))[0].shape
    torch.Size([10, 16])
    """

    _kind = "RNN"
    _states = states_of("rnn")
    _own: ClassVar[dict[str, Any]] = {"layer_norm": False, **Recurrent._own}

    layer_norm: bool = False

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
        device: Any = None,
        dtype: torch.dtype | None = None,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        memory: str | int = "full",
    ) -> None:
        chosen = choice("nonlinearity", plain(nonlinearity), NONLINEARITIES)
        options = (num_layers, "tanh" if chosen == "sigmoid" else chosen, bias, batch_first, dropout, bidirectional)
        super().__init__(*plain((input_size, hidden_size, *options)), device=device, dtype=dtype)
        if chosen == "sigmoid":  # torch's constructor rejects it
            self.nonlinearity, self.mode = chosen, "RNN_SIGMOID"
        self._set_up(layer_norm=layer_norm, zoneout=zoneout, weight_dropout=weight_dropout, memory=memory)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"nonlinearity": self.nonlinearity, "layer_norm": self.layer_norm}


class GRU(Recurrent, torch.nn.GRU):
    """``torch.nn.GRU`` on throughtime's kernels; see :class:`throughtime.GRU` for the equations.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for ``torch.nn.GRU``, and :class:`RNN`.
    reset_after : bool
        As for :class:`throughtime.GRU`; False is the original, whose weights torch.nn.GRU would interpret differently.
    layer_norm : bool
        As for :class:`throughtime.GRU`, with parameters of the same names; torch.nn.GRU does not have them.
    zoneout, weight_dropout, memory
        As for :class:`RNN`.

    Raises
    ------
    TypeError, ValueError
        As for ``torch.nn.GRU`` and :class:`throughtime.GRU`.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> gru = throughtime.torch.GRU(8, 16, 2, batch_first=True)
    >>> gru.load_state_dict(torch.nn.GRU(8, 16, 2).state_dict())
    <All keys matched successfully>
    >>> output, h_n = gru(torch.randn(4, 10, 8))
    >>> output.shape, h_n.shape
    (torch.Size([4, 10, 16]), torch.Size([2, 4, 16]))
    """

    _kind = "GRU"
    _states = states_of("gru")
    _own: ClassVar[dict[str, Any]] = {"reset_after": True, "layer_norm": False, **Recurrent._own}

    reset_after: bool
    layer_norm: bool = False

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
        device: Any = None,
        dtype: torch.dtype | None = None,
        reset_after: bool = True,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        memory: str | int = "full",
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(*plain((input_size, hidden_size, *options)), device=device, dtype=dtype)
        own = {"reset_after": reset_after, "layer_norm": layer_norm}
        self._set_up(**own, zoneout=zoneout, weight_dropout=weight_dropout, memory=memory)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"reset_after": self.reset_after, "layer_norm": self.layer_norm}


class LSTM(Recurrent, torch.nn.LSTM):
    """``torch.nn.LSTM`` on throughtime's kernels; see :class:`throughtime.LSTM` for the equations.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        As for ``torch.nn.LSTM``, and :class:`RNN`.
    peephole, layer_norm : bool
        As for :class:`throughtime.LSTM`, with parameters of the same names; torch.nn.LSTM does not have them.
    zoneout : float or pair of float
    weight_dropout, memory
        As for :class:`RNN`.

    Raises
    ------
    TypeError, ValueError
        As for ``torch.nn.LSTM`` and :class:`throughtime.LSTM`.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> lstm = throughtime.torch.LSTM(8, 16, peephole=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(100, 4, 8))
    >>> output.sum().backward()
    >>> lstm.weight_ci_l0.grad.shape
    torch.Size([16])
    """

    _kind = "LSTM"
    _states = states_of("lstm")
    _own: ClassVar[dict[str, Any]] = {"peephole": False, "layer_norm": False, **Recurrent._own}

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
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        memory: str | int = "full",
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__(*plain((input_size, hidden_size, *options)), device=device, dtype=dtype)
        own = {"peephole": peephole, "layer_norm": layer_norm}
        self._set_up(**own, zoneout=zoneout, weight_dropout=weight_dropout, memory=memory)

    def _options(self) -> dict[str, Any]:
        own = {"proj_size": self.proj_size, "peephole": self.peephole, "layer_norm": self.layer_norm}
        return super()._options() | own

    def _state(self, hx: Any) -> list[Tensor]:
        if isinstance(hx, tuple | list) and len(hx) == 2 and all(isinstance(tensor, Tensor) for tensor in hx):
            return list(hx)
        raise TypeError(f"hx must be a pair (h_0, c_0) of tensors for LSTM, got {kind_of(hx)}")


let_dynamo_trace(Recurrent)
