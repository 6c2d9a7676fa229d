"""Embedding: ``y = W[x]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._arguments import Array, as_array, contiguous, float_array
from .._arguments import size as positive_int
from .._memory import with_room
from .._scaled import ZERO, Scaled
from .layer import Layer
from .rows import LayerGradients
from .scaled_backward import Way

if TYPE_CHECKING:
    from .._core import EmbeddingBackward, EmbeddingForward

__all__ = ["Embedding"]


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

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtype is not one of these.
    ValueError
        If `count` or `size` is below 1.

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

    _rowwise = True

    def __init__(self, count: int, size: int, *, dtype: Any = "float32", seed: Any = None) -> None:
        self.count: int = positive_int("count", count)
        self.output_size: int = positive_int("size", size)
        self.size: int = self.output_size
        rng = self._set_up({"count": self.count, "size": self.size}, {"weight": (self.count, self.size)}, dtype, seed)
        self.parameters["weight"][...] = with_room(rng.standard_normal)((self.count, self.size))

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

    def _scaled_backward(self, layer: object, d: Scaled, way: Way) -> tuple[None, Scaled]:
        return None, Scaled(d.values, np.full_like(d.exponent, ZERO))
