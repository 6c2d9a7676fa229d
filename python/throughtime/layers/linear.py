"""Linear: ``y = x W^T + b``."""

from __future__ import annotations

import math
from typing import Any

from .._arguments import Array, as_array, flag, float_array
from .._arguments import size as positive_int
from .._memory import with_room
from .layer import Layer
from .rows import LayerGradients, affine, affine_backward, rows_of
from .scaled_backward import RowwiseTape

__all__ = ["Linear"]


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

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtype is not one of these.
    ValueError
        If a size is below 1.

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

    _rowwise = True

    def __init__(
        self, input_size: int, output_size: int, bias: bool = True, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        self.input_size: int = positive_int("input_size", input_size)
        self.output_size: int = positive_int("output_size", output_size)
        self._bias = flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.output_size, self.input_size)}
        if self._bias:
            shapes["bias"] = (self.output_size,)
        rng = self._set_up(
            {"input_size": self.input_size, "output_size": self.output_size, "bias": self._bias}, shapes, dtype, seed
        )
        bound = 1 / math.sqrt(self.input_size)
        for array in self.parameters.values():
            array[...] = with_room(rng.uniform)(-bound, bound, array.shape)

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


class LinearTape(RowwiseTape):
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
