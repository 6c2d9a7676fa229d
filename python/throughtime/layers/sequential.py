"""Sequential: layers one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

from .._arguments import Array, float_dtype
from .._scaled import Scaled, log10_norm
from .container import Container, ContainerTape, leaves
from .layer import Composite, Layer
from .rows import LayerGradients
from .scaled_backward import StackNorms, Way, scaled_backward
from .stream import Pass, PendingSum, StreamGradient, back, check_rows, fault_of, or_none, parameters_of, placed, taken

__all__ = ["Sequential"]


class Sequential(Container["SequentialTape"], kind="Sequential"):
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

    Raises
    ------
    TypeError
        If an argument is not a layer, or their dtypes differ.
    ValueError
        If there is no layer, or the sizes or the `batch_first` of layers do not fit together.

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
        layouts = {leaf.batch_first: leaf for leaf in leaves(layers) if hasattr(leaf, "batch_first")}
        if len(layouts) > 1:
            raise ValueError(f"batch_first differs between {layouts[True]!r} and {layouts[False]!r}")
        if sized:
            self.input_size: int | None = layers[sized[0]].input_size
            self.output_size: int | None = layers[sized[-1]].output_size
        config: dict[str, Any] = {"layers": list(layers)}
        if not typed and dtype is not None:
            config["dtype"] = str(common)
        self._compose(config, {str(i): layer for i, layer in enumerate(layers)}, common)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    @classmethod
    def _rebuild(cls, config: dict[str, Any]) -> Self:
        return cls(*config["layers"], dtype=config.get("dtype"))

    def _advance(self, stream: PendingSum, run: Pass) -> tuple[PendingSum, SequentialTape | None]:
        tapes, final = [], []
        for i, (layer, state) in enumerate(zip(self.layers, self._states("state", run.state), strict=True)):
            with placed(f"layers[{i}]", layer):
                within = run.within(str(i), state)
                stream, tape = within.through(layer, stream)
            tapes.append(tape)
            final.append(within.final_state)
        run.final_state = or_none(final)
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


class SequentialTape(ContainerTape["SequentialGradients"]):
    """One forward pass of `Sequential`: ``output``, and ``layers``, the tape of each layer."""

    def __init__(self, stack: Sequential, stream: PendingSum, tapes: list[Any], final_state: Any) -> None:
        super().__init__(stream, {str(i): tape for i, tape in enumerate(tapes)}, final_state)
        self._stack = stack
        self.layers: tuple[Any, ...] = tuple(tapes)

    def _batch_first(self) -> bool:
        return self._stack._batch_first()

    def _inner_fault(self) -> str | None:
        layers, batch_first = self._stack.layers, self._batch_first()
        found = (fault_of(f"layers[{i}]", layers[i], tape, batch_first) for i, tape in enumerate(self.layers))
        return next(filter(None, found), None)

    def _retreat(self, flow: StreamGradient, options: dict[str, Any]) -> tuple[SequentialGradients, StreamGradient]:
        found, checks = [], bool(options.get("check_finite"))
        d_final_states = self._stack._states("d_final_state", options.get("d_final_state"))
        for i in reversed(range(len(self.layers))):
            tape, layer = self.layers[i], self._stack.layers[i]
            with placed(f"layers[{i}]", layer):
                grads, flow = back(tape, layer, flow, options, d_final_states[i])
                if checks and flow.total is not None and not _checks_itself(tape):
                    check_rows(flow.total, "the gradient of input overflows", self._batch_first())
            found.append(grads)
        layers = tuple(reversed(found))
        parameters = Composite._named({str(i): grads.parameters for i, grads in enumerate(layers)})
        return SequentialGradients(layers[0].input, parameters, layers), flow

    def _scaled_backward(self, layer: object, d: Scaled, way: Way) -> tuple[StackNorms, Scaled]:
        norms, inner = [log10_norm(d)], []
        fault = None if way.fault is None else self._fault()  # that of the outermost stack is one of any inside
        for own, tape in zip(self._stack.layers[::-1], self.layers[::-1], strict=True):
            found, d = scaled_backward(own, tape, d, way)
            inner.append(found)
            norms.append(log10_norm(d))
        return StackNorms(self._stack.layers, norms[::-1], inner[::-1], fault), d


class SequentialGradients(LayerGradients):
    """Gradients of a Sequential: ``input``, ``parameters``, ``initial_state``, and ``layers``, those of each layer."""

    def __init__(self, d_input: Array | None, parameters: dict[str, Array], layers: tuple[Any, ...]) -> None:
        super().__init__(d_input, parameters)
        self.layers = layers
        self.initial_state: Any = or_none(getattr(grads, "initial_state", None) for grads in layers)


def _checks_itself(tape: Any) -> bool:
    """Whether its backward takes `check_finite`."""
    return "check_finite" in parameters_of(tape.backward)


def forward_for_flow(
    stack: Sequential, x: Any, lengths: Any, state: Any, memory: str | int
) -> tuple[SequentialTape, Array | None, Way]:
    """A forward without dropout, in which BatchNorm uses the statistics of x.

    Returns the tape, the mask of the steps that are not padding, and the settings of the backward.
    """
    takes_memory = any(taken(leaf.forward, {"memory": memory}) for leaf in stack._leaves())
    own_memory = memory if takes_memory or memory != "full" else None
    options = {**stack._handed_on(memory=own_memory), "training": False}
    tape = stack._record(x, lengths, Pass(options, save=True, masks={}, state=state, batch_statistics=True))
    has_time = lengths is not None or tape.output.ndim > 2 or not all(leaf._rowwise for leaf in stack._leaves())
    time_axis = int(tape.output.ndim > 2 and stack._batch_first()) if has_time else None
    return tape, tape._valid, Way(time_axis, tape._fault())
