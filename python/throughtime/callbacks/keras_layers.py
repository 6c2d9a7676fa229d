"""The recurrent layers of a Keras model: found, called, and converted to layers here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import keras
import numpy as np

from .. import convert
from .._arguments import Array
from ..recurrent import GRU, LSTM, RNN, Recurrent
from ..recurrent.arguments import NONLINEARITIES

_KINDS: dict[type[Any], tuple[str, type[Recurrent]]] = {
    keras.layers.SimpleRNN: ("SimpleRNN", RNN),
    keras.layers.GRU: ("GRU", GRU),
    keras.layers.LSTM: ("LSTM", LSTM),
}


class Call(NamedTuple):
    """The arguments of a call of a Keras layer: input (B, T, I), state (a tensor or a list of them), mask (B, T)."""

    sequences: Any
    initial_state: Any
    mask: Any


def recurrent_layers(model: Any) -> list[Any]:
    """The ``SimpleRNN``, ``GRU``, ``LSTM`` and ``Bidirectional`` layers, in models inside too; each once."""
    found: dict[int, Any] = {}
    for layer in model.layers:
        if isinstance(layer, (*_KINDS, keras.layers.Bidirectional)):
            found[id(layer)] = layer
        elif hasattr(layer, "layers"):
            found |= {id(inner): inner for inner in recurrent_layers(layer)}
    return list(found.values())


def check(layer: Any) -> None:
    """Raise ValueError unless the layer can be converted and measured."""
    forward, *backward = _directions(layer)
    place = f"layer {layer.name!r}"
    for direction in (forward, *backward):
        _kind(direction)  # which may not be one that is known
    if layer.stateful:
        raise ValueError(f"{place} is stateful: it starts from the batch before, which a measurement cannot")
    if backward and (type(backward[0]) is not type(forward) or backward[0].units != forward.units):
        raise ValueError(f"the two directions of {place} differ in kind or units, expected the same")
    if backward and forward.go_backwards:
        raise ValueError(f"the forward direction of {place} has go_backwards=True, expected False")
    for direction in (forward, *backward):
        if _kind(direction)[0] == "SimpleRNN":
            _activation(place, direction.activation, NONLINEARITIES)
        else:
            _activation(place, direction.activation, ("tanh",))
            _activation(place, direction.recurrent_activation, ("sigmoid",))


def converted(layer: Any) -> Recurrent:
    """A layer here with the present weights."""
    forward, *backward = _directions(layer)
    kind, layer_class = _kind(forward)
    weights = [np.asarray(array) for array in layer.get_weights()]
    parameters = convert.from_keras(kind, weights)
    options = {
        "bias": forward.use_bias,
        "batch_first": True,
        "bidirectional": bool(backward),
        "reverse": not backward and forward.go_backwards,
        "dtype": "float64" if weights[0].dtype == np.float64 else "float32",
    }
    if kind == "SimpleRNN":
        options["nonlinearity"] = _activation(f"layer {layer.name!r}", forward.activation, NONLINEARITIES)
    if kind == "GRU":
        options["reset_after"] = forward.reset_after
    found = layer_class(parameters["weight_ih_l0"].shape[1], forward.units, **options)
    found.load_parameters(parameters)
    return found


def arguments(layer: Any, call: Call, dtype: Any) -> dict[str, Any]:
    """The arguments of the converted layer's forward."""
    state: Any = None
    lengths: Array | None = None
    if call.initial_state is not None:
        parts = [_array(part, dtype) for part in keras.tree.flatten(call.initial_state)]  # by direction, then by state
        states = len(parts) // len(_directions(layer))
        stacked = [np.stack(parts[which::states]) for which in range(states)]
        state = tuple(stacked) if states > 1 else stacked[0]
    if call.mask is not None:
        mask = _array(call.mask, bool)
        lengths = mask.sum(axis=1)
        if (mask != (np.arange(mask.shape[1]) < lengths[:, None])).any():
            raise ValueError(f"the mask of layer {layer.name!r} hides other steps than padding at the end")
    return {"x": _array(call.sequences, dtype), "state": state, "lengths": lengths}


def calls(model: Any, layers: list[Any], x: Any) -> list[tuple[Any, Call]]:
    """Run the model, without training, and return the calls of the layers."""
    found: list[tuple[Any, Call]] = []
    with _kept(model), ExitStack() as seen:
        for layer in layers:
            seen.enter_context(_seen(layer, found))
        model(x, training=False)
    return found


@contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Restore what a call changes: a recurrent layer draws its dropout masks even if it does not use them."""
    before = [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in model.non_trainable_variables]
    try:
        with _torch_generators_kept():
            yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _torch_generators_kept() -> AbstractContextManager[None]:
    """With torch, Keras draws masks from torch's own generators instead of the layer's seed."""
    if keras.config.backend() != "torch":
        return nullcontext()
    import torch

    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])


@contextmanager
def _seen(layer: Any, found: list[tuple[Any, Call]]) -> Iterator[None]:
    """Append every call of the layer while the context lasts."""
    call = layer.call

    def seen(sequences: Any, initial_state: Any = None, mask: Any = None, **rest: Any) -> Any:
        found.append((layer, Call(sequences, initial_state, mask)))
        return call(sequences, initial_state=initial_state, mask=mask, **rest)

    vars(layer)["call"] = seen  # past Keras's __setattr__, which tracks what it is given
    try:
        yield
    finally:
        del vars(layer)["call"]


def _directions(layer: Any) -> tuple[Any, ...]:
    bidirectional = isinstance(layer, keras.layers.Bidirectional)
    return (layer.forward_layer, layer.backward_layer) if bidirectional else (layer,)


def _kind(direction: Any) -> tuple[str, type[Recurrent]]:
    for kind, names in _KINDS.items():
        if isinstance(direction, kind):
            return names
    raise ValueError(f"layer {direction.name!r} is a {type(direction).__name__}, expected a SimpleRNN, GRU or LSTM")


def _activation(place: str, activation: Any, allowed: tuple[str, ...]) -> str:
    for name in allowed:
        if activation is keras.activations.get(name):
            return name
    got = getattr(activation, "__name__", repr(activation))
    raise ValueError(f"an activation of {place} is {got}, expected {' or '.join(allowed)}")


def _array(tensor: Any, dtype: Any) -> Array:
    array: Array = np.asarray(keras.ops.convert_to_numpy(tensor)).astype(dtype)
    return array
