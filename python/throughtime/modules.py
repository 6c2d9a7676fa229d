"""Layers without recurrence: Linear ``y = x W^T + b`` and Embedding ``y = W[x]``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._arguments import Array, as_array, check_dtype, contiguous, flag, float_array
from ._arguments import size as positive_int
from ._memory import with_room
from .layer import Layer

if TYPE_CHECKING:
    from ._core import EmbeddingBackward, EmbeddingForward, LinearBackward

__all__ = ["Embedding", "Linear"]


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
    layer._check_parameters()
    x = as_array("x", x)
    check_features(layer, x)
    rows: Array = x.reshape(-1, x.shape[-1])
    return rows


class Linear(Layer, kind="Linear"):
    """``y = x W^T + b`` on the last axis.

    Parameters ``weight (O, I)`` and ``bias (O,)`` start from U(-1/sqrt(I), 1/sqrt(I)), as in ``torch.nn.Linear``.

    Parameters
    ----------
    input_size, output_size : int
        I and O.
    bias : bool
        Whether to add ``b``.
    dtype : {"float32", "float64"}
        Type of parameters, inputs and results.
    seed : optional
        Seed of the initial weights: anything that ``numpy.random.default_rng`` accepts.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> linear = tt.Linear(3, 2, seed=0)
    >>> tape = linear.forward(np.ones((5, 4, 3), np.float32))
    >>> tape.output.shape
    (5, 4, 2)
    >>> grads = tape.backward(np.ones_like(tape.output))
    >>> grads.input.shape, grads.parameters["bias"].tolist()
    ((5, 4, 3), [20.0, 20.0])
    """

    def __init__(
        self, input_size: int, output_size: int, bias: bool = True, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        self.input_size: int = positive_int("input_size", input_size)
        self.output_size: int = positive_int("output_size", output_size)
        self._bias = flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.output_size, self.input_size)}
        if self._bias:
            shapes["bias"] = (self.output_size,)
        self._set_up(
            {"input_size": self.input_size, "output_size": self.output_size, "bias": self._bias}, shapes, dtype, seed
        )
        bound = 1 / math.sqrt(self.input_size)
        for array in self.parameters.values():
            array[...] = with_room(self._rng.uniform)(-bound, bound, array.shape)

    @with_room
    def __call__(self, x: Any) -> Array:
        """Return the output (..., O) for `x` (..., I); nothing is saved."""
        rows, shape = self._rows(x)
        return affine(rows, self.parameters["weight"], self.parameters.get("bias")).reshape(shape)

    @with_room
    def forward(self, x: Any) -> LinearTape:
        """Compute the output and save the values that `LinearTape.backward` needs.

        Parameters
        ----------
        x : (..., I) array
            Of the layer's dtype, with any leading axes. The tape keeps a reference to it.

        Returns
        -------
        LinearTape
            With ``output`` (..., O).

        Raises
        ------
        TypeError
            If `x` is not an array of the layer's dtype.
        ValueError
            If the last axis of `x` has another size than I.
        """
        rows, shape = self._rows(x)
        weight = self.parameters["weight"].copy()  # an optimiser may change it before backward
        output = affine(rows, weight, self.parameters.get("bias"))
        return LinearTape(output.reshape(shape), rows, weight, self._bias)

    def _rows(self, x: Any) -> tuple[Array, tuple[int, ...]]:
        """`x` as a matrix (N, I), and the shape of the output."""
        rows = rows_of(self, x)
        return rows, (*as_array("x", x).shape[:-1], self.output_size)


class LinearTape:
    """One forward pass of `Linear`: ``output``, the input and a copy of the weight."""

    def __init__(self, output: Array, rows: Array, weight: Array, bias: bool) -> None:
        self.output = output
        self._rows, self._weight, self._bias = rows, weight, bias

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds."""
        return self.output.nbytes + self._rows.nbytes + self._weight.nbytes

    @with_room
    def backward(self, d_output: Any) -> LayerGradients:
        """Backpropagate. May be called repeatedly.

        Parameters
        ----------
        d_output : (..., O) array
            dL/doutput, of the shape and dtype of ``output``.

        Returns
        -------
        LayerGradients
            ``input`` (..., I) and ``parameters`` with ``weight`` (O, I) and ``bias`` (O,).

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape of `d_output` does not fit.
        """
        d_output = float_array("d_output", d_output, self.output.dtype, self.output.shape)
        d_rows = d_output.reshape(-1, d_output.shape[-1])
        d_input, parameters = affine_backward(d_rows, self._rows, self._weight, self._bias)
        return LayerGradients(d_input.reshape(*d_output.shape[:-1], d_input.shape[1]), parameters)


class Embedding(Layer, kind="Embedding"):
    """``y = W[x]``: one row of ``weight (count, size)`` per integer. Starts from N(0, 1), as ``torch.nn.Embedding``.

    Parameters
    ----------
    count : int
        Number of rows; inputs are in [0, count).
    size : int
        Length of a row.
    dtype : {"float32", "float64"}
        Type of the parameter and of results.
    seed : optional
        Seed of the initial weights: anything that ``numpy.random.default_rng`` accepts.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> embedding = tt.Embedding(10, 4, seed=0)
    >>> tape = embedding.forward(np.array([[1, 2], [2, 9]]))
    >>> tape.output.shape
    (2, 2, 4)
    >>> tape.backward(np.ones_like(tape.output)).parameters["weight"][:4, 0].tolist()
    [0.0, 1.0, 2.0, 0.0]
    """

    def __init__(self, count: int, size: int, *, dtype: Any = "float32", seed: Any = None) -> None:
        self.count = positive_int("count", count)
        self.output_size: int = positive_int("size", size)
        self.size = self.output_size
        self._set_up({"count": self.count, "size": self.size}, {"weight": (self.count, self.size)}, dtype, seed)
        self.parameters["weight"][...] = with_room(self._rng.standard_normal)((self.count, self.size))

    @with_room
    def __call__(self, x: Any) -> Array:
        """Return the rows (..., size) for integers `x` (...); nothing is saved."""
        output, _ = self._look_up(x)
        return output

    @with_room
    def forward(self, x: Any) -> EmbeddingTape:
        """Look the rows up and save the values that `EmbeddingTape.backward` needs.

        Parameters
        ----------
        x : (...) integer array
            Values in [0, count), any shape. The tape keeps a reference to it.

        Returns
        -------
        EmbeddingTape
            With ``output`` (..., size).

        Raises
        ------
        TypeError
            If `x` is not an array of integers.
        ValueError
            If a value is outside [0, count).
        """
        return EmbeddingTape(*self._look_up(x), self.count)

    def _look_up(self, x: Any) -> tuple[Array, Array]:
        """The rows (..., size) for integers `x`, and `x` as contiguous int64."""
        self._check_parameters()
        x = as_array("x", x)
        if x.dtype.kind not in "iu":
            raise TypeError(f"x has dtype {x.dtype}, expected integers")
        indices = contiguous(x.astype(np.int64, copy=False))  # large unsigned ones become negative, an error
        output = _core.empty((*x.shape, self.size), self.dtype)
        problem: EmbeddingForward = {
            "indices": indices.reshape(-1),
            "weight": self.parameters["weight"],
            "output": output.reshape(-1, self.size),
        }
        if not _core.embedding_forward(problem):
            wrong = x.min() if x.min() < 0 else x.max()
            raise ValueError(f"x must hold integers in [0, {self.count}), got {wrong}")
        return output, indices


class EmbeddingTape:
    """One forward pass of `Embedding`: ``output`` and the integers."""

    def __init__(self, output: Array, indices: Array, count: int) -> None:
        self.output = output
        self._indices, self._count = indices, count

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds."""
        return self.output.nbytes + self._indices.nbytes

    @with_room
    def backward(self, d_output: Any) -> LayerGradients:
        """Sum the gradient of each row. May be called repeatedly.

        Parameters
        ----------
        d_output : (..., size) array
            dL/doutput, of the shape and dtype of ``output``.

        Returns
        -------
        LayerGradients
            ``input`` is None, because integers have no gradient; ``parameters`` has ``weight`` (count, size). Gradients
            of rows that occur repeatedly are summed in float64, in the order of `x`.

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape of `d_output` does not fit, or `x` has changed and is out of range.
        """
        d_output = float_array("d_output", d_output, self.output.dtype, self.output.shape)
        width = d_output.shape[-1]
        d_weight = _core.empty((self._count, width), d_output.dtype)
        problem: EmbeddingBackward = {
            "indices": self._indices.reshape(-1),
            "d_output": contiguous(d_output).reshape(-1, width),
            "d_weight": d_weight,
        }
        if not _core.embedding_backward(problem):
            raise ValueError(f"x must hold integers in [0, {self._count}), but was changed after the forward")
        return LayerGradients(None, {"weight": d_weight})
