"""The base class of layers that consist of others: blocks and stacks."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, overload

import numpy as np

from .._arguments import Array, as_array, check_timesteps, flag, float_array, valid_steps
from .._finite import not_finite_row, raise_fault
from .._memory import with_room
from .layer import Composite, Layer
from .stream import (
    Pass,
    PendingSum,
    StreamGradient,
    StreamLayer,
    StreamTape,
    check_rows,
    has_state,
    parameters_of,
    streamed,
    taken,
)

_NOT_GIVEN: Any = object()
T = TypeVar("T", bound="ContainerTape[Any]")
G = TypeVar("G")


class Container(Composite, StreamLayer, Generic[T]):
    """A layer that consists of others and passes options to them."""

    @overload
    def __call__(self, x: Any, lengths: Any = None) -> Array: ...

    @overload
    def __call__(self, x: Any, lengths: Any = None, *, state: Any) -> tuple[Array, Any]: ...

    def __call__(self, x: Any, lengths: Any = None, *, state: Any = _NOT_GIVEN) -> Array | tuple[Array, Any]:
        """Run inference: no dropout, running statistics, nothing is saved.

        Parameters
        ----------
        x, lengths
            As for :meth:`forward`.
        state : optional
            As for :meth:`forward`. If it is given, even as None, the final state is returned too.

        Returns
        -------
        output : array
        state : tuple, array or None
            Only with `state`: the state after the last step.

        Examples
        --------
        One step at a time, as in sampling a text:

        >>> import numpy as np, throughtime as tt
        >>> model = tt.Sequential(tt.Embedding(5, 8, seed=0), tt.GRU(8, 8, seed=1), tt.Linear(8, 5, seed=2))
        >>> state, letter = None, np.array([[4]])
        >>> for _ in range(3):
        ...     logits, state = model(letter, state=state)
        ...     letter = logits.argmax(axis=2)
        >>> logits.shape, [None if own is None else own.shape for own in state]
        ((1, 1, 5), [None, (1, 1, 8), None])
        """
        asked = state is not _NOT_GIVEN
        run = Pass({}, save=False, masks={}, state=state if asked else None)
        stream, _ = self._run(x, lengths, run)
        output = select(run.valid, stream.materialise())
        return (output, run.final_state) if asked else output

    @streamed
    def forward(
        self,
        x: Any,
        lengths: Any = None,
        *,
        state: Any = None,
        resets: Any = None,
        masks: Mapping[str, Array] | None = None,
        training: bool = True,
        memory: str | int | None = None,
    ) -> T:
        """Run every layer and save the values that the tape's ``backward`` needs.

        Parameters
        ----------
        x : (T, B, F) array
            Input of the first layer. The tape keeps a reference: do not change it before the backward.
        lengths : (B,) integers, optional
            Each sequence's own length, for the layers that mix timesteps. Padding of x counts as zero, whatever it
            holds; the output is zero there, and incoming gradients are ignored there.
        state : tuple, array or None
            Initial state; None means zeros. The state of a Sequential is a tuple with one entry per layer, that of a
            block is the state of its sublayer, that of a recurrent layer ``h_0`` or ``(h_0, c_0)``, and that of a layer
            without state None. ``tape.final_state`` has the same structure, so a sequence can be cut into windows: no
            gradient crosses a cut.
        resets : (T, B) bool array, optional
            For the recurrent layers.
        masks : mapping of str to bool array, optional
            Dropout masks, as in ``tape.masks``, with names like those of parameters: ``0.sublayer.dropout_l0``.
        training : bool
            False switches dropout off, and BatchNorm to its running statistics.
        memory : {"full", "states", "checkpoint"} or int, optional
            For the recurrent layers.

        Returns
        -------
        tape
            With ``output``, ``final_state``, ``masks``, ``nbytes`` and ``backward(d_output, **options)``; the tape of a
            block also has ``sublayer``, the tape of its inner layer, that of a Sequential ``layers``, all tapes.

        Raises
        ------
        TypeError
            If an array has another dtype than the layers; nothing is cast.
        ValueError
            If a size does not fit (the message names the layer), or no layer accepts an option.
        """
        if not isinstance(masks, Mapping | None) or not all(isinstance(name, str) for name in masks or ()):
            raise TypeError(f"masks must be a dict of name to bool array, got {masks!r}")
        options = {**self._handed_on(resets=resets, memory=memory), "training": flag("training", training)}
        return self._record(x, lengths, Pass(options, save=True, masks=masks or {}, state=state))

    def _handed_on(self, **given: Any) -> dict[str, Any]:
        """The given options; an option that no inner layer accepts is an error."""
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if not any(taken(leaf.forward, {name: None}) for leaf in self._leaves()):
                raise ValueError(f"{name} was given, but no layer of {self!r} accepts it")
        return options

    def _record(self, x: Any, lengths: Any, run: Pass) -> T:
        """Run a forward pass with checked options, and return its tape."""
        _, tape = self._run(x, lengths, run)
        assert tape is not None
        unexpected = sorted(set(run.masks) - set(tape.masks))
        if unexpected:
            raise ValueError(
                f"masks has unexpected {', '.join(unexpected)}; expected {', '.join(tape.masks) or 'none'}"
            )
        tape._valid, tape._x = run.valid, as_array("x", x)
        return tape

    def _run(self, x: Any, lengths: Any, run: Pass) -> tuple[PendingSum, T | None]:
        self._check_parameters()
        x = as_array("x", x)
        if lengths is not None:
            run.valid = valid_steps(x, lengths, batch_first=self._batch_first())
            run.options = {**run.options, "lengths": lengths}
        return self._advance(PendingSum(select(run.valid, x)), run)

    def _batch_first(self) -> bool:
        return any(getattr(leaf, "batch_first", False) for leaf in self._leaves())

    def _leaves(self) -> Iterator[Any]:
        return leaves(self._inner.values())

    def _has_state(self) -> bool:
        return any(map(has_state, self._inner.values()))

    def _advance(self, stream: PendingSum, run: Pass) -> tuple[PendingSum, T | None]:
        raise NotImplementedError


def leaves(layers: Iterable[Layer]) -> Iterator[Any]:
    """The layers, with containers replaced by their inner layers."""
    for layer in layers:
        if isinstance(layer, Container):
            yield from layer._leaves()
        else:
            yield layer


def select(valid: Array | None, array: Array) -> Array:
    """The array with zeros in the padding, which may hold NaN."""
    return array if valid is None else without_padding(valid, array)


@with_room
def without_padding(valid: Array, array: Array) -> Array:
    where = valid.reshape(valid.shape + (1,) * (array.ndim - valid.ndim))
    selected: Array = np.where(where, array, array.dtype.type(0))
    return selected


class ContainerTape(StreamTape, Generic[G]):
    """One forward pass of a container: the tapes of its inner layers."""

    _valid: Array | None = None
    _x: Array | None = None  # input of the outermost container

    def __init__(self, stream: PendingSum, inner: dict[str, Any], final_state: Any) -> None:
        self._stream = stream
        self._inner = inner
        self.final_state = final_state

    @functools.cached_property
    def output(self) -> Array:
        """The output of the forward pass; zero in the padding."""
        return select(self._valid, self._stream.materialise())

    @property
    def masks(self) -> dict[str, Array]:
        """The dropout masks used, with names like those of parameters."""
        return Composite._named({name: getattr(tape, "masks", {}) for name, tape in self._inner.items()})

    @property
    def nbytes(self) -> int:
        """Bytes that the inner tapes hold."""
        return sum(getattr(tape, "nbytes", 0) for tape in self._inner.values())

    @with_room
    def backward(self, d_output: Any = None, d_final_state: Any = None, **options: Any) -> G:
        """Backpropagate. May be called repeatedly. At least one of the gradients must be given.

        Parameters
        ----------
        d_output : array, optional
            dL/doutput, of the shape and dtype of ``output``.
        d_final_state : optional
            dL/dfinal_state, with the structure of ``final_state``; None means zero.
        **options
            ``timesteps``, ``truncate`` and ``clip``, for the recurrent layers inside; ``check_finite``, for all layers.

        Returns
        -------
        gradients
            ``input``, ``parameters``, named as the layer's, and ``initial_state``, with the structure of
            ``final_state``. A block also has ``sublayer``, and a Sequential ``layers``: the gradients that each inner
            layer returns, such as ``hidden`` of a recurrent layer.

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape of a gradient does not fit, none is given, or no layer accepts an option.
        FloatingPointError
            With ``check_finite``.
        """
        if d_output is None and d_final_state is None:
            raise ValueError("backward needs at least one of d_output and d_final_state, got None for each")
        if d_output is None:
            d_output = np.zeros(self.output.shape, self.output.dtype)
        d_output = float_array("d_output", d_output, self.output.dtype, self.output.shape)
        known = self._options()
        for name in options:
            if name not in known:
                raise TypeError(f"backward got {name}, expected one of {', '.join(sorted(known))} for these layers")
        d_output = select(self._valid, d_output)
        if flag("check_finite", options.get("check_finite", False)):
            raise_fault(self._fault())
            check_rows(d_output, "d_output is not finite", self._batch_first())
        if "timesteps" in options:
            options["timesteps"] = check_timesteps(options["timesteps"])  # it may be an iterator, read several times
        options["d_final_state"] = d_final_state
        return self._retreat(StreamGradient(d_output), options)[0]

    def _fault(self) -> str | None:
        """Where the forward of these layers stopped being finite, None if it did not."""
        of_x = None if self._x is None else not_finite_row(select(self._valid, self._x), self._batch_first())
        return self._inner_fault() if of_x is None else f"x is not finite at {of_x}"

    def _inner_fault(self) -> str | None:
        raise NotImplementedError

    def _batch_first(self) -> bool:
        raise NotImplementedError

    def _options(self) -> set[str]:
        """The names of the options that backward accepts."""
        known: set[str] = set()
        for tape in self._inner.values():
            known |= tape._options() if isinstance(tape, ContainerTape) else parameters_of(tape.backward)
        return (known | {"check_finite"}) - {"self", "d_output", "d_final_state"}

    def _retreat(self, flow: StreamGradient, options: dict[str, Any]) -> tuple[G, StreamGradient]:
        raise NotImplementedError
