"""Products of rows with a weight, and the checks of layers that work row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _core
from .._arguments import Array, as_array, check_dtype, contiguous
from .layer import Layer, check_parameters

if TYPE_CHECKING:
    from .._core import LinearBackward


class LayerGradients:
    """The result of ``backward``: the gradient of the input (None for integers) and of each parameter."""

    def __init__(self, d_input: Array | None, parameters: dict[str, Array]) -> None:
        self.input = d_input
        self.parameters = parameters


def affine(rows: Array, weight: Array, bias: Array | None) -> Array:
    """``rows W^T + b`` for rows (N, I), weight (O, I) and bias (O,)."""
    output = _core.empty((len(rows), len(weight)), rows.dtype)
    _core.linear_forward({"x": contiguous(rows), "weight": weight, "bias": bias, "y": output})
    return output


def affine_backward(d_output: Array, rows: Array, weight: Array, bias: bool) -> tuple[Array, dict[str, Array]]:
    """The gradients of rows (N, I), and of ``weight`` and ``bias``, for `d_output` (N, O)."""
    d_rows = _core.empty(rows.shape, rows.dtype)
    d_weight = _core.empty(weight.shape, weight.dtype)
    d_bias = _core.empty(weight.shape[:1], weight.dtype) if bias else None
    problem: LinearBackward = {
        "x": contiguous(rows),
        "weight": weight,
        "d_y": contiguous(d_output),
        "d_x": d_rows,
        "d_weight": d_weight,
        "d_bias": d_bias,
    }
    _core.linear_backward(problem)
    return d_rows, {"weight": d_weight} if d_bias is None else {"weight": d_weight, "bias": d_bias}


def check_features(layer: Layer, x: Array) -> None:
    """Raise an error unless `x` is (..., I) in the layer's dtype."""
    check_dtype("x", x, layer.dtype)
    if x.ndim == 0 or x.shape[-1] != layer.input_size:
        raise ValueError(
            f"x must have {layer.input_size} features in its last axis for this {type(layer).__name__}, "
            f"got shape {x.shape}"
        )


def rows_of(layer: Layer, x: Any) -> Array:
    """Check that `x` (..., I) fits the layer, and return it as a matrix (N, I)."""
    check_parameters(layer)
    x = as_array("x", x)
    check_features(layer, x)
    rows: Array = x.reshape(-1, x.shape[-1])
    return rows
