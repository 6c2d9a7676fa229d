"""LayerNorm, residual blocks and stacks. An addition and the following LayerNorm are one kernel, even across layers."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np

from . import _core, layer_norm
from ._arguments import Array, as_array, choice, flag, float_array, float_dtype, number, valid_steps
from ._arguments import size as positive_int
from ._finite import forward_fault, not_finite_row, raise_fault
from ._memory import with_room
from .batch_norm import BatchNorm, BatchNormTape, NormTape
from .batch_norm import Saved as BatchSaved
from .layer import Composite, Layer
from .modules import Embedding, LayerGradients, check_features
from .tape import Tape, check_timesteps

__all__ = ["LayerNorm", "ResidualBlock", "Sequential"]

_ERRORS = (FloatingPointError, TypeError, ValueError)
_NOT_GIVEN: Any = object()


class _Sum:
    """The value between two layers: x + scale branch, added on demand or by the kernel of the next LayerNorm."""

    def __init__(self, x: Array, branch: Array | None = None, scale: float = 1.0) -> None:
        self.x, self.branch, self.scale = x, branch, scale

    @with_room
    def settle(self) -> Array:
        if self.branch is not None:
            branch = self.branch if self.scale == 1 else self.branch * self.x.dtype.type(self.scale)
            self._is(np.add(self.x, branch, out=_core.empty(self.x.shape, self.x.dtype)))
        return self.x

    def normalise(self, norm: LayerNorm, *, save: bool, keep_sum: bool) -> tuple[Array, layer_norm.Saved | None]:
        """LayerNorm of the sum, which is lost unless `save` or `keep_sum` is set."""
        weight, bias = norm.parameters["weight"], norm.parameters["bias"]
        total, normalised, saved = layer_norm.forward(
            self.x, self.branch, weight, bias, self.scale, norm.eps, keep_sum=keep_sum, save=save
        )
        if total is not None:
            self._is(total)
        return normalised, saved

    def _is(self, total: Array) -> None:
        self.x, self.branch, self.scale = total, None, 1.0


class _Flow(NamedTuple):
    """The gradient between two layers, and that of its branch if the next layer has computed it already."""

    total: Array
    branch: Array | None = None


def _normalise_backward(d_sum: Array | None, d_normalised: Array, saved: Any) -> tuple[_Flow, dict[str, Array]]:
    if isinstance(saved, BatchSaved):
        d_x, parameters = saved.backward(d_normalised)
        return _Flow(d_x if d_sum is None else d_sum + d_x), parameters
    d_x, d_branch, d_weight, d_bias = layer_norm.backward(d_sum, d_normalised, saved)
    return _Flow(d_x, d_branch if saved.added else None), {"weight": d_weight, "bias": d_bias}


class Pass:
    """The options of one forward pass through nested layers; each layer takes those that it accepts."""

    def __init__(
        self,
        options: dict[str, Any],
        *,
        save: bool,
        masks: Mapping[str, Array],
        valid: Array | None = None,
        batch_statistics: bool = False,
        prefix: str = "",
        state: Any = None,
    ) -> None:
        self.options, self.save, self.masks, self.prefix = options, save, masks, prefix
        self.valid = valid  # mask of the steps that are not padding
        self.training = bool(options.get("training", False))
        self.batch_statistics = batch_statistics or self.training
        self.state = state  # the initial state
        self.final_state: Any = None  # set when the layer has run, if it has a state

    def within(self, name: str, state: Any) -> Pass:
        """The options for the inner layer of this name, which starts from `state`."""
        return Pass(
            self.options,
            save=self.save,
            masks=self.masks,
            valid=self.valid,
            batch_statistics=self.batch_statistics,
            prefix=f"{self.prefix}{name}.",
            state=state,
        )

    def normalise(self, norm: LayerNorm | BatchNorm, stream: _Sum, *, keep_sum: bool) -> tuple[Array, Any]:
        """A norm of the stream, and the values saved for its backward. After a LayerNorm the sum may be lost."""
        if isinstance(norm, LayerNorm):
            return stream.normalise(norm, save=self.save, keep_sum=keep_sum)
        return norm._normalise(stream.settle(), self.valid, batch=self.batch_statistics, update=self.training)

    def through(self, layer: Any, stream: _Sum) -> tuple[_Sum, Any]:
        """The output of the layer, and its tape, None if nothing is saved."""
        _refuse_state("state", self.state, layer)
        if isinstance(layer, LayerNorm | _Container) and type(layer).forward in (LayerNorm.forward, _Container.forward):
            return layer._advance(stream, self)
        if isinstance(layer, BatchNorm) and type(layer).forward is BatchNorm.forward:
            check_features(layer, stream.x)
            output, saved = self.normalise(layer, stream, keep_sum=False)
            return _Sum(output), BatchNormTape(output, saved) if self.save else None
        x, options = stream.settle(), {**self.options, "state": self.state}
        if not self.save:
            output = layer(x, **_taken(layer.__call__, options))
            if isinstance(output, tuple):
                output, self.final_state = output
            return _Sum(output), None
        own = {name.removeprefix(self.prefix): m for name, m in self.masks.items() if name.startswith(self.prefix)}
        tape = layer.forward(x, **_taken(layer.forward, {**options, **({"masks": own} if own else {})}))
        self.final_state = getattr(tape, "final_state", None)
        return _Sum(tape.output), tape


def _back(tape: Any, layer: Any, flow: _Flow, options: dict[str, Any], d_final_state: Any) -> tuple[Any, _Flow]:
    """A layer's gradients, and the gradient of its input."""
    _refuse_state("d_final_state", d_final_state, layer)
    options = {**options, "d_final_state": d_final_state}
    if isinstance(tape, LayerNormTape | _ContainerTape):
        return tape._retreat(flow, options)
    grads = tape.backward(flow.total, **_taken(tape.backward, options))
    return grads, _Flow(grads.input)


def _fault_of(place: str, layer: Layer, tape: Any, batch_first: bool) -> str | None:
    """Where the forward of an inner layer stopped being finite, with the position of the layer."""
    if isinstance(tape, _ContainerTape):
        found = tape._fault()
    elif isinstance(tape, Tape):
        found = forward_fault(tape)
    else:
        found = _output_fault(layer, tape, batch_first)
    return None if found is None else f"{place} ({layer!r}): {found}"


def _output_fault(layer: Layer, tape: Any, batch_first: bool) -> str | None:
    row = not_finite_row(tape.output, batch_first)
    if row is None:
        return None
    broken = _broken_array(layer)
    return f"the output overflows at {row}" if broken is None else f"{broken} is not finite, nor is the output at {row}"


def _broken_array(layer: Layer) -> str | None:
    """The parameter or buffer of a layer that is not finite, if any."""
    for kind, arrays in (("parameter", layer.parameters), ("buffer", layer.buffers)):
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                return f"{kind} {name}"
    return None


def _check_rows(array: Array, fault: str, batch_first: bool) -> None:
    """Raise an error if a gradient is not finite."""
    row = not_finite_row(array, batch_first)
    raise_fault(None if row is None else f"{fault} at {row}")


def _refuse_state(name: str, state: Any, layer: Any) -> None:
    """Raise an error if a layer without state is given one."""
    if state is not None and not _has_state(layer):
        raise ValueError(f"{name} was given, but {layer!r} has none")


def _has_state(layer: Any) -> bool:
    """Whether a layer, or one inside it, has a state."""
    if isinstance(layer, _Container) and type(layer).forward is _Container.forward:
        return any(map(_has_state, layer._inner.values()))
    return bool(_taken(layer.forward, {"state": None}))


def _or_none(states: Iterable[Any]) -> Any:
    """A tuple of states, or None if all are None."""
    found = tuple(states)
    return None if all(state is None for state in found) else found


def _taken(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a function accepts."""
    names = _parameters(getattr(function, "__func__", function))
    return {name: value for name, value in options.items() if name in names}


@functools.lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@contextmanager
def _placed(place: str, layer: Layer) -> Iterator[None]:
    """Prefix errors with the position of the layer."""
    try:
        yield
    except _ERRORS as error:
        kind = next(kind for kind in _ERRORS if isinstance(error, kind))
        raise kind(f"{place} ({layer!r}): {error}") from error


class LayerNorm(Layer, kind="LayerNorm"):
    """``y = (x - mean) / sqrt(variance + eps) weight + bias`` over the last axis (Ba et al. 2016).

    Parameters ``weight (size,)`` and ``bias (size,)`` start as ones and zeros, as in ``torch.nn.LayerNorm``. In a
    :class:`Sequential`, the addition of a preceding :class:`ResidualBlock` is part of the same kernel.

    Parameters
    ----------
    size : int
        Features of x and y.
    eps : float
        Added to the variance, for numerical stability.
    dtype : {"float32", "float64"}
        Type of parameters, inputs and results.
    seed : optional
        Accepted as for every layer, but unused.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> tape = tt.LayerNorm(4).forward(np.array([[1, 2, 3, 4]], np.float32))
    >>> tape.output.round(2)
    array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
    >>> tape.backward(np.ones_like(tape.output)).parameters["bias"].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, size: int, eps: float = 1e-5, *, dtype: Any = "float32", seed: Any = None) -> None:
        self.input_size = self.output_size = positive_int("size", size)
        self.eps = layer_norm.check_eps(eps)
        shape = (self.input_size,)
        self._set_up({"size": self.input_size, "eps": self.eps}, {"weight": shape, "bias": shape}, dtype, seed)
        self.parameters["weight"][...] = 1

    def __call__(self, x: Any) -> Array:
        """Return the output (..., size) for `x` (..., size); nothing is saved."""
        stream, _ = self._advance(_Sum(as_array("x", x)), Pass({}, save=False, masks={}))
        return stream.settle()

    def forward(self, x: Any) -> LayerNormTape:
        """Compute the output and save the values that `LayerNormTape.backward` needs.

        Parameters
        ----------
        x : (..., size) array
            Of the layer's dtype, with any leading axes. The tape keeps a reference to it.

        Returns
        -------
        LayerNormTape
            With ``output`` (..., size).

        Raises
        ------
        TypeError
            If `x` is not an array of the layer's dtype.
        ValueError
            If the last axis of `x` has another size.
        """
        _, tape = self._advance(_Sum(as_array("x", x)), Pass({}, save=True, masks={}))
        assert tape is not None
        return tape

    def _advance(self, stream: _Sum, run: Pass) -> tuple[_Sum, LayerNormTape | None]:
        check_features(self, stream.x)
        output, saved = run.normalise(self, stream, keep_sum=False)
        return _Sum(output), None if saved is None else LayerNormTape(output, saved)


class LayerNormTape(NormTape):
    """One forward pass of `LayerNorm`: ``output``, the input, four numbers per row, and a copy of the weight."""

    def _gradients(self, d_output: Array) -> LayerGradients:
        return self._retreat(_Flow(d_output), {})[0]

    def _retreat(self, flow: _Flow, options: dict[str, Any]) -> tuple[LayerGradients, _Flow]:
        below, parameters = _normalise_backward(None, flow.total, self._saved)
        return LayerGradients(below.total, parameters), below


class _Container(Composite):
    """A layer that consists of others and passes options to them."""

    def __call__(self, x: Any, lengths: Any = None, *, state: Any = _NOT_GIVEN) -> Any:
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
        output = _select(run.valid, stream.settle())
        return (output, run.final_state) if asked else output

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
    ) -> Any:
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
            if not any(_taken(leaf.forward, {name: None}) for leaf in self._leaves()):
                raise ValueError(f"{name} was given, but no layer of {self!r} accepts it")
        return options

    def _record(self, x: Any, lengths: Any, run: Pass) -> Any:
        """Run a forward pass with checked options, and return its tape."""
        _, tape = self._run(x, lengths, run)
        unexpected = sorted(set(run.masks) - set(tape.masks))
        if unexpected:
            raise ValueError(
                f"masks has unexpected {', '.join(unexpected)}; expected {', '.join(tape.masks) or 'none'}"
            )
        tape._valid, tape._x = run.valid, as_array("x", x)
        return tape

    def _run(self, x: Any, lengths: Any, run: Pass) -> tuple[_Sum, Any]:
        self._check_parameters()
        x = as_array("x", x)
        if lengths is not None:
            run.valid = valid_steps(x, lengths, batch_first=self._batch_first())
            run.options = {**run.options, "lengths": lengths}
        return self._advance(_Sum(_select(run.valid, x)), run)

    def _batch_first(self) -> bool:
        return any(getattr(leaf, "batch_first", False) for leaf in self._leaves())

    def _leaves(self) -> Iterator[Any]:
        return _leaves(self._inner.values())

    def _advance(self, stream: _Sum, run: Pass) -> tuple[_Sum, Any]:
        raise NotImplementedError


def _leaves(layers: Iterable[Layer]) -> Iterator[Any]:
    """The layers, with containers replaced by their inner layers."""
    for layer in layers:
        if isinstance(layer, _Container):
            yield from layer._leaves()
        else:
            yield layer


def _select(valid: Array | None, array: Array) -> Array:
    """The array with zeros in the padding, which may hold NaN."""
    return array if valid is None else _without_padding(valid, array)


@with_room
def _without_padding(valid: Array, array: Array) -> Array:
    where = valid.reshape(valid.shape + (1,) * (array.ndim - valid.ndim))
    selected: Array = np.where(where, array, array.dtype.type(0))
    return selected


class _ContainerTape:
    """One forward pass of a container: the tapes of its inner layers."""

    _valid: Array | None = None
    _x: Array | None = None  # input of the outermost container

    def __init__(self, stream: _Sum, inner: dict[str, Any], final_state: Any) -> None:
        self._stream = stream
        self._inner = inner
        self.final_state = final_state

    @functools.cached_property
    def output(self) -> Array:
        """The output of the forward pass; zero in the padding."""
        return _select(self._valid, self._stream.settle())

    @property
    def masks(self) -> dict[str, Array]:
        """The dropout masks used, with names like those of parameters."""
        return Composite._named({name: getattr(tape, "masks", {}) for name, tape in self._inner.items()})

    @property
    def nbytes(self) -> int:
        """Bytes that the inner tapes hold."""
        return sum(getattr(tape, "nbytes", 0) for tape in self._inner.values())

    @with_room
    def backward(self, d_output: Any = None, d_final_state: Any = None, **options: Any) -> Any:
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
        d_output = _select(self._valid, d_output)
        if flag("check_finite", options.get("check_finite", False)):
            raise_fault(self._fault())
            _check_rows(d_output, "d_output is not finite", self._batch_first())
        if "timesteps" in options:
            options["timesteps"] = check_timesteps(options["timesteps"])  # it may be an iterator, read several times
        options["d_final_state"] = d_final_state
        return self._retreat(_Flow(d_output), options)[0]

    def _fault(self) -> str | None:
        """Where the forward of these layers stopped being finite, None if it did not."""
        of_x = None if self._x is None else not_finite_row(_select(self._valid, self._x), self._batch_first())
        return self._inner_fault() if of_x is None else f"x is not finite at {of_x}"

    def _inner_fault(self) -> str | None:
        raise NotImplementedError

    def _batch_first(self) -> bool:
        raise NotImplementedError

    def _options(self) -> set[str]:
        """The names of the options that backward accepts."""
        known: set[str] = set()
        for tape in self._inner.values():
            own = tape.backward
            known |= tape._options() if isinstance(tape, _ContainerTape) else _parameters(getattr(own, "__func__", own))
        return (known | {"check_finite"}) - {"self", "d_output", "d_final_state"}

    def _retreat(self, flow: _Flow, options: dict[str, Any]) -> tuple[Any, _Flow]:
        raise NotImplementedError


_NORMS: dict[str, type[LayerNorm] | type[BatchNorm]] = {"layer": LayerNorm, "batch": BatchNorm}


class ResidualBlock(_Container, kind="ResidualBlock"):
    """A layer with a skip connection: ``x + s f(LN(x))``, ``LN(x + s f(x))`` or ``x + s f(x)``.

    Parameters are the norm's, ``norm.weight`` and ``norm.bias``, and the sublayer's, with the prefix ``sublayer.``.

    Parameters
    ----------
    sublayer : Layer
        f: any layer with as many output as input features, including recurrent layers, blocks and Sequentials.
    size : int
        Features of x and y.
    norm : {"pre", "post", None}
        Position of LN.
    residual : bool
        False omits the addition: ``s f(LN(x))``, ``LN(s f(x))`` or ``s f(x)``.
    branch_scale : float
        s.
    eps : float
        ``eps`` of the norm.
    normalisation : {"layer", "batch"}
        Whether the norm is a :class:`LayerNorm` or a :class:`BatchNorm`, whose statistics couple the rows of a batch.
    dtype : optional
        Must be the sublayer's, which is the default.
    seed : optional
        Accepted as for every layer, but unused.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> block = tt.ResidualBlock(tt.LSTM(8, 8, seed=0), 8)
    >>> tape = block.forward(np.random.default_rng(0).standard_normal((100, 4, 8), dtype=np.float32))
    >>> grads = tape.backward(np.ones_like(tape.output))
    >>> grads.input.shape, grads.sublayer.hidden.shape
    ((100, 4, 8), (1, 100, 4, 8))
    >>> list(grads.parameters)[:3]
    ['norm.weight', 'norm.bias', 'sublayer.weight_ih_l0']
    """

    def __init__(
        self,
        sublayer: Layer,
        size: int,
        *,
        norm: str | None = "pre",
        residual: bool = True,
        branch_scale: float = 1.0,
        eps: float = 1e-5,
        normalisation: str = "layer",
        dtype: Any = None,
        seed: Any = None,
    ) -> None:
        if not isinstance(sublayer, Layer):
            raise TypeError(f"sublayer must be a throughtime layer, got {type(sublayer).__name__}")
        self.sublayer = sublayer
        self.input_size = self.output_size = positive_int("size", size)
        takes, gives = sublayer.input_size, sublayer.output_size
        if isinstance(next(_leaves([sublayer])), Embedding):
            raise ValueError(f"sublayer takes integers, so a skip connection is impossible: {sublayer!r}")
        if {takes, gives} - {None, self.input_size}:
            raise ValueError(f"sublayer has {takes} inputs and {gives} outputs, expected size={size}: {sublayer!r}")
        self.norm_place = None if norm is None else choice("norm", norm, ("pre", "post"))
        self.residual = flag("residual", residual)
        finite = sys.float_info.max
        self.branch_scale = number("branch_scale", branch_scale, -finite, finite)
        self.eps = layer_norm.check_eps(eps)
        own = sublayer.dtype if dtype is None else float_dtype(dtype)
        if own != sublayer.dtype and not sublayer._any_dtype:
            raise TypeError(f"dtype is {own}, but the sublayer has {sublayer.dtype}: {sublayer!r}")
        self.normalisation = choice("normalisation", normalisation, tuple(_NORMS))
        kind = _NORMS[self.normalisation]
        self.norm = None if norm is None else kind(self.input_size, self.eps, dtype=own, seed=seed)
        config = {"sublayer": sublayer, "size": self.input_size, "norm": norm, "residual": self.residual}
        config |= {"branch_scale": self.branch_scale, "eps": self.eps, "normalisation": self.normalisation}
        if sublayer._any_dtype:
            config["dtype"] = str(own)
        inner: dict[str, Layer] = {} if self.norm is None else {"norm": self.norm}
        self._compose(config, {**inner, "sublayer": sublayer}, own)

    def _advance(self, stream: _Sum, run: Pass) -> tuple[_Sum, BlockTape | None]:
        check_features(self, stream.x)
        saved, tape = None, None
        if self.norm_place == "pre":
            assert self.norm is not None
            h, saved = run.normalise(self.norm, stream, keep_sum=self.residual)
        else:
            h = stream.settle()
        with _placed("sublayer", self.sublayer):
            within = run.within("sublayer", run.state)
            inner, tape = within.through(self.sublayer, _Sum(h))
            run.final_state = within.final_state
        branch = inner.settle()
        if branch.shape != h.shape:
            raise ValueError(f"sublayer returned shape {branch.shape}, expected {h.shape} as x: {self.sublayer!r}")
        scale = self.branch_scale
        if self.residual:
            out = _Sum(stream.settle(), branch, scale)
        else:
            out = _Sum(branch if scale == 1 else branch * branch.dtype.type(scale))
        if self.norm_place == "post":
            assert self.norm is not None
            y, saved = run.normalise(self.norm, out, keep_sum=False)
            out = _Sum(y)
        return out, BlockTape(self, out, saved, tape, run.final_state) if run.save else None


class BlockTape(_ContainerTape):
    """One forward pass of `ResidualBlock`: ``output``, and ``sublayer``, the tape of the inner layer."""

    def __init__(
        self,
        block: ResidualBlock,
        stream: _Sum,
        saved: layer_norm.Saved | BatchSaved | None,
        sublayer: Any,
        final_state: Any,
    ) -> None:
        super().__init__(stream, {"sublayer": sublayer}, final_state)
        self._block, self._saved = block, saved
        self.sublayer = sublayer

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds, without x."""
        return super().nbytes + (self._saved.nbytes if self._saved else 0)

    def _batch_first(self) -> bool:
        return self._block._batch_first()

    def _inner_fault(self) -> str | None:
        norm = self._block.norm
        if norm is not None and self._block.norm_place == "pre" and (broken := _broken_array(norm)) is not None:
            return f"norm ({norm!r}): {broken} is not finite"
        inner = _fault_of("sublayer", self._block.sublayer, self.sublayer, self._batch_first())
        return inner or _output_fault(self._block, self, self._batch_first())

    def _retreat(self, flow: _Flow, options: dict[str, Any]) -> tuple[BlockGradients, _Flow]:
        block = self._block
        norm: dict[str, Array] = {}
        if block.norm_place == "post":
            flow, norm = _normalise_backward(None, flow.total, self._saved)
        d_branch = flow.branch if block.residual else None
        if d_branch is None:
            scale = block.branch_scale
            d_branch = flow.total if scale == 1 else flow.total * flow.total.dtype.type(scale)
        with _placed("sublayer", block.sublayer):
            sublayer, inner = _back(
                self.sublayer, block.sublayer, _Flow(d_branch), options, options.get("d_final_state")
            )
        d_skip = flow.total if block.residual else None
        if block.norm_place == "pre":
            below, norm = _normalise_backward(d_skip, inner.total, self._saved)
        elif d_skip is not None:
            below = _Flow(d_skip + inner.total)
        else:
            below = inner
        parameters = Composite._named({"norm": norm, "sublayer": sublayer.parameters})
        return BlockGradients(below.total, parameters, sublayer), below


class BlockGradients(LayerGradients):
    """Gradients of a block: ``input``, ``parameters``, ``initial_state``, and ``sublayer``, those of the sublayer."""

    def __init__(self, d_input: Array, parameters: dict[str, Array], sublayer: Any) -> None:
        super().__init__(d_input, parameters)
        self.sublayer = sublayer
        self.initial_state = getattr(sublayer, "initial_state", None)


class Sequential(_Container, kind="Sequential"):
    """A stack of layers. Parameters are theirs, with their positions as prefixes: ``0.weight_ih_l0``.

    The addition of a :class:`ResidualBlock` and the LayerNorm that follows it, of a ``norm="pre"`` block or a
    :class:`LayerNorm`, are one kernel, forward and backward.

    Parameters
    ----------
    *layers : Layer
        Layers of one dtype. The input size of each must equal the output size of the layer before it. Recurrent layers
        pass the outputs of all timesteps on.
    dtype : optional
        Must be the layers', which is the default.
    seed : optional
        Accepted as for every layer, but unused.

    Attributes
    ----------
    layers : tuple of Layer

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> stack = tt.Sequential(
    ...     tt.Linear(3, 8, seed=0),
    ...     tt.ResidualBlock(tt.GRU(8, 8, seed=1), 8),
    ...     tt.ResidualBlock(tt.MLP(8, 32, "gelu", seed=2), 8),
    ...     tt.LayerNorm(8),
    ... )
    >>> tape = stack.forward(np.random.default_rng(0).standard_normal((100, 4, 3), dtype=np.float32))
    >>> grads = tape.backward(np.ones_like(tape.output))
    >>> [layer.input.shape for layer in grads.layers]
    [(100, 4, 3), (100, 4, 8), (100, 4, 8), (100, 4, 8)]
    >>> tape.layers[1].sublayer.hidden.shape, grads.layers[1].sublayer.hidden.shape
    ((1, 100, 4, 8), (1, 100, 4, 8))
    """

    def __init__(self, *layers: Layer, dtype: Any = None, seed: Any = None) -> None:
        if not layers:
            raise ValueError("layers is empty, expected at least one layer")
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}] must be a throughtime layer, got {type(layer).__name__}")
        self.layers = layers
        typed = [i for i, layer in enumerate(layers) if not layer._any_dtype]
        self._any_dtype = dtype is None and not typed
        first = typed[0] if typed else 0
        common = layers[first].dtype if dtype is None else float_dtype(dtype)
        for i in typed:
            layer = layers[i]
            if layer.dtype != common:
                whose = "dtype" if dtype is not None else f"that of layers[{first}]"
                raise TypeError(f"layers[{i}] has dtype {layer.dtype}, expected {common}, {whose}: {layer!r}")
        sized = [i for i, layer in enumerate(layers) if not layer._elementwise]
        self._elementwise = not sized
        for i, k in pairwise(sized):
            one, other = layers[i], layers[k]
            if None not in (one.output_size, other.input_size) and one.output_size != other.input_size:
                raise ValueError(
                    f"layers[{k}] ({other!r}) expects {other.input_size} features, "
                    f"but layers[{i}] ({one!r}) returns {one.output_size}"
                )
        layouts = {leaf.batch_first: leaf for leaf in _leaves(layers) if hasattr(leaf, "batch_first")}
        if len(layouts) > 1:
            raise ValueError(f"batch_first differs between {layouts[True]!r} and {layouts[False]!r}")
        if sized:
            self.input_size, self.output_size = layers[sized[0]].input_size, layers[sized[-1]].output_size
        config: dict[str, Any] = {"layers": list(layers)}
        if not typed and dtype is not None:
            config["dtype"] = str(common)
        self._compose(config, {str(i): layer for i, layer in enumerate(layers)}, common)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    @classmethod
    def _rebuild(cls, config: dict[str, Any]) -> Self:
        return cls(*config["layers"], dtype=config.get("dtype"))

    def _advance(self, stream: _Sum, run: Pass) -> tuple[_Sum, SequentialTape | None]:
        tapes, final = [], []
        for i, (layer, state) in enumerate(zip(self.layers, self._states("state", run.state), strict=True)):
            with _placed(f"layers[{i}]", layer):
                within = run.within(str(i), state)
                stream, tape = within.through(layer, stream)
            tapes.append(tape)
            final.append(within.final_state)
        run.final_state = _or_none(final)
        return stream, SequentialTape(self, stream, tapes, run.final_state) if run.save else None

    def _states(self, name: str, state: Any) -> Sequence[Any]:
        """The state of each layer."""
        if state is None:
            return (None,) * len(self.layers)
        if not isinstance(state, tuple | list):
            raise TypeError(f"{name} must be a tuple with one entry per layer, got {type(state).__name__}")
        if len(state) != len(self.layers):
            raise ValueError(
                f"{name} has {len(state)} entries, expected {len(self.layers)}, one per layer (None if it has no state)"
            )
        return state


class SequentialTape(_ContainerTape):
    """One forward pass of `Sequential`: ``output``, and ``layers``, the tape of each layer."""

    def __init__(self, stack: Sequential, stream: _Sum, tapes: list[Any], final_state: Any) -> None:
        super().__init__(stream, {str(i): tape for i, tape in enumerate(tapes)}, final_state)
        self._stack = stack
        self.layers = tuple(tapes)

    def _batch_first(self) -> bool:
        return self._stack._batch_first()

    def _inner_fault(self) -> str | None:
        layers, batch_first = self._stack.layers, self._batch_first()
        found = (_fault_of(f"layers[{i}]", layers[i], tape, batch_first) for i, tape in enumerate(self.layers))
        return next(filter(None, found), None)

    def _retreat(self, flow: _Flow, options: dict[str, Any]) -> tuple[SequentialGradients, _Flow]:
        found, checks = [], bool(options.get("check_finite"))
        d_final_states = self._stack._states("d_final_state", options.get("d_final_state"))
        for i in reversed(range(len(self.layers))):
            tape, layer = self.layers[i], self._stack.layers[i]
            with _placed(f"layers[{i}]", layer):
                grads, flow = _back(tape, layer, flow, options, d_final_states[i])
                if checks and flow.total is not None and not isinstance(tape, Tape):  # Tape checks its own gradients
                    _check_rows(flow.total, "the gradient of input overflows", self._batch_first())
            found.append(grads)
        layers = tuple(reversed(found))
        parameters = Composite._named({str(i): grads.parameters for i, grads in enumerate(layers)})
        return SequentialGradients(layers[0].input, parameters, layers), flow


class SequentialGradients(LayerGradients):
    """Gradients of a Sequential: ``input``, ``parameters``, ``initial_state``, and ``layers``, those of each layer."""

    def __init__(self, d_input: Array | None, parameters: dict[str, Array], layers: tuple[Any, ...]) -> None:
        super().__init__(d_input, parameters)
        self.layers = layers
        self.initial_state = _or_none(getattr(grads, "initial_state", None) for grads in layers)
