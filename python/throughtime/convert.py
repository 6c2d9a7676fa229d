"""Parameters from Keras, layers from ONNX: the same cells, but with another order of gates and other biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._arguments import Array, as_host_floats, check_shape, choice
from .recurrent import GRU, LSTM, RNN, Recurrent
from .recurrent.arguments import NONLINEARITIES

__all__ = ["from_keras", "from_onnx"]

# The position of each of our gates in the other library's order
_KERAS = {"SimpleRNN": (0,), "RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 1, 2, 3)}  # z r h, i f c o
_ONNX = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}  # z r h, i o f c
_ONNX_ACTIVATIONS = {"RNN": ["tanh"], "GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"]}
_ONNX_ATTRIBUTES = {  # name, and the field that holds the value
    "activation_alpha": "floats",  # of activations that are refused
    "activation_beta": "floats",
    "activations": "strings",
    "clip": "f",
    "direction": "s",
    "hidden_size": "i",
    "input_forget": "i",
    "layout": "i",
    "linear_before_reset": "i",
}


def from_keras(kind: str, weights: Sequence[Any]) -> dict[str, Array]:
    """Convert the result of a Keras layer's ``get_weights()`` to parameters of a layer here.

    Parameters
    ----------
    kind : {"LSTM", "GRU", "SimpleRNN", "RNN"}
        Keras's layer; ``"RNN"`` means ``"SimpleRNN"``.
    weights : sequence of arrays
        ``kernel (I, G*H)``, ``recurrent_kernel (H, G*H)`` and, unless ``use_bias=False``, ``bias``: ``(G*H,)``, or
        ``(2, 3*H)`` for a GRU with ``reset_after=True``. For a ``Bidirectional`` layer, the forward arrays, then the
        backward arrays. Stacked layers are converted one at a time.

    Returns
    -------
    dict of str to array
        Input of ``load_parameters`` of a layer with ``num_layers=1`` and the same sizes, directions and bias:
        ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0`` (zeros if Keras has one bias); names of the
        second direction end in ``_reverse``. Build a GRU with Keras's ``reset_after``.

    Raises
    ------
    TypeError
        If `weights` is not a sequence of arrays.
    ValueError
        If their number or a shape does not fit `kind`.

    Notes
    -----
    The weights do not contain the activations. The layers here have Keras's defaults, tanh and sigmoid. A
    ``SimpleRNN(activation="relu")`` corresponds to an ``RNN`` with ``nonlinearity="relu"``, and likewise for
    ``"sigmoid"``; other activations have no layer here.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> kernel, recurrent_kernel, bias = np.ones((5, 12)), np.ones((3, 12)), np.ones(12)  # keras_layer.get_weights()
    >>> lstm = tt.LSTM(5, 3)
    >>> lstm.load_parameters(tt.convert.from_keras("LSTM", [kernel, recurrent_kernel, bias]))
    >>> lstm.parameters["weight_ih_l0"].shape
    (12, 5)

    Two stacked layers become one with ``num_layers=2``:

    >>> second = tt.convert.from_keras("LSTM", [np.ones((3, 12)), recurrent_kernel, bias])
    >>> sorted({name.replace("_l0", "_l1"): array for name, array in second.items()})
    ['bias_hh_l1', 'bias_ih_l1', 'weight_hh_l1', 'weight_ih_l1']
    """
    order = _KERAS[choice("kind", kind, tuple(_KERAS))]
    if not isinstance(weights, Sequence) or isinstance(weights, str | bytes | memoryview):
        raise TypeError(f"weights must be the list of arrays that get_weights() returns, got {type(weights).__name__}")
    arrays = [as_host_floats(f"weights[{k}]", array) for k, array in enumerate(weights)]
    if len(arrays) not in (2, 3, 4, 6):
        raise ValueError(
            "weights must be kernel, recurrent_kernel and optionally bias, of one direction or of two "
            f"(2, 3, 4 or 6 arrays), got {len(arrays)}"
        )
    each = len(arrays) if len(arrays) < 4 else len(arrays) // 2
    found = _keras_direction(kind, order, arrays[:each], 0, "_l0")
    if len(arrays) > each:
        found |= _keras_direction(kind, order, arrays[each:], each, "_l0_reverse")
    return found


def _keras_direction(
    kind: str, order: tuple[int, ...], arrays: list[Array], start: int, suffix: str
) -> dict[str, Array]:
    """The parameters of one direction, from `weights[start:]`."""
    kernel, recurrent, *bias = arrays
    gates, units = len(order), len(recurrent) if recurrent.ndim else 0
    names = (f"weights[{start}] (kernel)", f"weights[{start + 1}] (recurrent_kernel)")
    for name, array in zip(names, (kernel, recurrent), strict=True):
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected a matrix of {gates} H columns")
    check_shape(names[1], recurrent, ("H", gates * units))
    check_shape(names[0], kernel, ("I", gates * units))
    found = {"weight_ih": _gates(kernel.T, order), "weight_hh": _gates(recurrent.T, order)}
    if bias:
        two = kind == "GRU" and bias[0].ndim == 2  # reset_after=True
        check_shape(f"weights[{start + 2}] (bias)", bias[0], (2, 3 * units) if two else (gates * units,))
        found["bias_ih"] = _gates(bias[0][0] if two else bias[0], order)
        found["bias_hh"] = _gates(bias[0][1], order) if two else np.zeros_like(bias[0])
    return {name + suffix: array for name, array in found.items()}


def _gates(array: Array, order: tuple[int, ...]) -> Array:
    """A copy of `array` with its blocks of rows, one per gate, in `order`."""
    blocks = np.split(array, len(order))
    return np.concatenate([blocks[k] for k in order])


def from_onnx(node: Any, initializers: Mapping[str, Any]) -> Recurrent:
    """Convert an ONNX node RNN, GRU or LSTM to a layer.

    The layer has ``batch_first=True`` if the node has ``layout=1``, no bias if the node has no B, and the dtype of W
    (float32 for 16-bit types). The node's inputs ``sequence_lens``, ``initial_h`` and ``initial_c`` are not part of a
    layer: pass them as ``lengths`` and ``state`` in each call. The output is ``(T, B, D*H)``; ONNX's Y is
    ``(T, D, B, H)``.

    Parameters
    ----------
    node : onnx.NodeProto
        Or any object with its fields ``op_type``, ``input`` and ``attribute``.
    initializers : mapping of str to array
        Name to array of the node's W, R, B and P, as
        ``{t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}``.

    Returns
    -------
    RNN, GRU or LSTM
        With ``num_layers=1``. ``direction="reverse"`` becomes ``reverse=True``; ``linear_before_reset=0``, ONNX's
        default, ``GRU(reset_after=False)``; a node with P, ``LSTM(peephole=True)``; the activations Relu and Sigmoid,
        ``RNN(nonlinearity="relu")`` and ``"sigmoid"``.

    Raises
    ------
    TypeError
        If `initializers` is not a dict, or an entry is not an array of floats.
    ValueError
        If an attribute requests a feature that the layers here do not have: activations other than the default,
        ``clip``, ``input_forget``. If an initializer is missing or has the wrong shape.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> from types import SimpleNamespace  # in place of onnx.NodeProto, which has the same fields
    >>> node = SimpleNamespace(op_type="LSTM", input=["x", "W", "R", "B"], attribute=[])
    >>> arrays = {"W": np.ones((1, 12, 5)), "R": np.ones((1, 12, 3)), "B": np.ones((1, 24))}
    >>> tt.convert.from_onnx(node, arrays)
    LSTM(5, 3, dtype='float64')
    """
    layer_class, options, parameters = _read_node(node, initializers)
    layer = layer_class(**options)
    layer.load_parameters(parameters)
    return layer


def _read_node(node: Any, initializers: Mapping[str, Any]) -> tuple[type[Recurrent], dict[str, Any], dict[str, Array]]:
    """The class of the layer, the arguments of its constructor and its parameters."""
    if not isinstance(initializers, Mapping):
        raise TypeError(f"initializers must be a dict of name to array, got {type(initializers).__name__}")
    if not all(hasattr(node, name) for name in ("op_type", "input", "attribute")):
        raise TypeError(f"node must be an ONNX node, with op_type, input and attribute, got {type(node).__name__}")
    kind = choice("node.op_type", node.op_type, tuple(_ONNX))
    attributes = _attributes(node)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    arrays = _arrays(node, initializers, len(_ONNX[kind]), directions, attributes.get("hidden_size"))
    options = {
        "input_size": arrays["W"].shape[2],
        "hidden_size": arrays["R"].shape[2],
        "bias": "B" in arrays,
        "batch_first": attributes.get("layout") == 1,
        "bidirectional": directions == 2,
        "reverse": attributes.get("direction") == "reverse",
        "dtype": "float64" if arrays["W"].dtype == np.float64 else "float32",
    }
    activations = _activations(kind, attributes.get("activations"), directions)
    if kind == "RNN":
        options["nonlinearity"] = activations[0]
    if kind == "GRU":
        options["reset_after"] = attributes.get("linear_before_reset", 0) != 0
    if "P" in arrays:
        options["peephole"] = True
    parameters: dict[str, Array] = {}
    for d, suffix in enumerate(("_l0", "_l0_reverse")[:directions]):
        own = _onnx_direction({name: array[d] for name, array in arrays.items()}, _ONNX[kind])
        parameters |= {name + suffix: array for name, array in own.items()}
    return {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}[kind], options, parameters


def _attributes(node: Any) -> dict[str, Any]:
    """The node's attributes by name. An attribute that the layers here do not support is a ValueError."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        name = choice("the name of a node.attribute", attribute.name, tuple(_ONNX_ATTRIBUTES))
        value = getattr(attribute, _ONNX_ATTRIBUTES[name])
        found[name] = value.decode() if isinstance(value, bytes) else value
    choice("node.attribute direction", found.get("direction", "forward"), ("forward", "reverse", "bidirectional"))
    if "clip" in found:
        raise ValueError(f"node.attribute clip is {found['clip']}, expected none: pre-activations are not clipped here")
    for name, allowed in {"input_forget": (0,), "layout": (0, 1), "linear_before_reset": (0, 1)}.items():
        if found.get(name, 0) not in allowed:
            raise ValueError(f"node.attribute {name} is {found[name]}, expected {' or '.join(map(str, allowed))}")
    return found


def _activations(kind: str, given: Any, directions: int) -> list[str]:
    """The activations of one direction, in lower case: the defaults, or any of an RNN."""
    default = _ONNX_ACTIVATIONS[kind]
    words = [word.decode() if isinstance(word, bytes) else word for word in given or default * directions]
    allowed = [[word] for word in NONLINEARITIES] if kind == "RNN" else [default]
    lower = [word.lower() for word in words]
    for one in allowed:
        if lower == one * directions:
            return one
    raise ValueError(
        f"node.attribute activations is {words}, expected {' or '.join(str(one * directions) for one in allowed)}"
    )


def _arrays(
    node: Any, initializers: Mapping[str, Any], gates: int, directions: int, hidden_size: Any
) -> dict[str, Array]:
    """W, R, B and P, as far as the node has them, with their shapes checked."""
    place = {"W": 1, "R": 2, "B": 3, "P": 7}
    inputs = dict(enumerate(node.input))
    names = {letter: inputs[k] for letter, k in place.items() if inputs.get(k)}
    for letter in "WR":
        if letter not in names:
            raise ValueError(f"node.input[{place[letter]}] ({letter}) is missing, expected a name in initializers")
    for letter, name in names.items():
        if name not in initializers:
            raise ValueError(
                f"node.input[{place[letter]}] ({letter}) is {name!r}, which is not in initializers; "
                f"expected one of {', '.join(map(repr, initializers)) or 'none'}"
            )
    labels = {letter: f"initializers[{name!r}] ({letter})" for letter, name in names.items()}
    arrays = {letter: as_host_floats(labels[letter], initializers[name]) for letter, name in names.items()}
    units: int = arrays["R"].shape[-1] if arrays["R"].ndim else 0
    if hidden_size not in (None, units):
        raise ValueError(
            f"node.attribute hidden_size is {hidden_size}, but {labels['R']} has shape {arrays['R'].shape}, "
            f"expected ({directions}, {gates * hidden_size}, {hidden_size})"
        )
    shapes: dict[str, tuple[int | str, ...]] = {
        "W": (directions, gates * units, "I"),
        "R": (directions, gates * units, units),
        "B": (directions, 2 * gates * units),
        "P": (directions, 3 * units),
    }
    for letter, array in arrays.items():
        check_shape(labels[letter], array, shapes[letter])
    return arrays


def _onnx_direction(arrays: dict[str, Array], order: tuple[int, ...]) -> dict[str, Array]:
    """The parameters of one direction, with names without suffix."""
    found = {"weight_ih": _gates(arrays["W"], order), "weight_hh": _gates(arrays["R"], order)}
    if "B" in arrays:
        found["bias_ih"], found["bias_hh"] = (_gates(half, order) for half in np.split(arrays["B"], 2))
    if "P" in arrays:
        found["weight_ci"], found["weight_co"], found["weight_cf"] = np.split(arrays["P"], 3)  # ONNX: i o f
    return found
