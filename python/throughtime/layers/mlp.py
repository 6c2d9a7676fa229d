"""MLP: two linear maps with an activation in between; bias and activation are one kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from .._arguments import Array, as_array, choice, float_array, float_dtype, generator
from .._arguments import size as positive_int
from .._memory import with_room
from .layer import Composite, Layer
from .linear import Linear
from .rows import LayerGradients, affine, affine_backward, rows_of
from .scaled_backward import RowwiseTape

__all__ = ["MLP"]

_ACTIVATIONS = ("relu", "gelu", "tanh", "sigmoid")


class MLP(Composite, kind="MLP"):
    """``y = W_2 f(W_1 x + b_1) + b_2`` on the last axis.

    Parameters ``linear1.weight (hidden, size)``, ``linear1.bias``, ``linear2.weight (size, hidden)`` and
    ``linear2.bias`` are named as in ``torch.nn.TransformerEncoderLayer`` and start as those of :class:`Linear`.

    Parameters
    ----------
    size : int
        Features of x and y.
    hidden_size : int
        Features between the maps.
    activation : {"relu", "gelu", "tanh", "sigmoid"}
        f. ``"gelu"`` is ``x Phi(x)`` with the exact normal distribution, not its approximation by tanh.
    dtype : {"float32", "float64"}
        Type of parameters, inputs and results.
    seed : optional
        Seed of the initial weights: anything that ``numpy.random.default_rng`` accepts.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtype is not one of these.
    ValueError
        If a size is below 1, or the activation is unknown.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> mlp = tt.MLP(8, 32, "gelu", seed=0)
    >>> tape = mlp.forward(np.ones((5, 4, 8), np.float32))
    >>> grads = tape.backward(np.ones_like(tape.output))
    >>> grads.input.shape, grads.parameters["linear1.weight"].shape
    ((5, 4, 8), (32, 8))
    """

    _rowwise = True

    def __init__(
        self, size: int, hidden_size: int, activation: str = "relu", *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        self.input_size: int = positive_int("size", size)
        self.output_size: int = self.input_size
        self.hidden_size: int = positive_int("hidden_size", hidden_size)
        self.activation: str = choice("activation", activation, _ACTIVATIONS)
        rng = generator("seed", seed)
        self._linear1 = Linear(self.input_size, self.hidden_size, dtype=dtype, seed=rng)
        self._linear2 = Linear(self.hidden_size, self.output_size, dtype=dtype, seed=rng)
        config = {"size": self.input_size, "hidden_size": self.hidden_size, "activation": activation}
        inner: dict[str, Layer] = {"linear1": self._linear1, "linear2": self._linear2}
        self._compose({**config, "dtype": str(float_dtype(dtype))}, inner, float_dtype(dtype))

    def __call__(self, x: Any) -> Array:
        """Return the output (..., size) for `x` (..., size); nothing is saved."""
        return self._run(x, save=False).output

    def forward(self, x: Any) -> MLPTape:
        """Compute the output and save the values that `MLPTape.backward` needs.

        Parameters
        ----------
        x : (..., size) array
            Of the layer's dtype, with any leading axes. The tape keeps a reference to it.

        Returns
        -------
        MLPTape
            With ``output`` (..., size).

        Raises
        ------
        TypeError
            If `x` is not an array of the layer's dtype.
        ValueError
            If the last axis of `x` has another size.
        """
        return self._run(x, save=True)

    @with_room
    def _run(self, x: Any, *, save: bool) -> MLPTape:
        rows = rows_of(self, x)
        weights = [linear.parameters["weight"] for linear in (self._linear1, self._linear2)]
        if save:
            weights = [weight.copy() for weight in weights]  # an optimiser may change them before backward
        below = affine(rows, weights[0], None)
        apart = save and _core.activation_of_argument(self.activation)
        hidden = _core.empty(below.shape, below.dtype) if apart else below
        bias = self._linear1.parameters["bias"]
        _core.activation_forward(self.activation, {"x": below, "bias": bias, "y": hidden})
        output = affine(hidden, weights[1], self._linear2.parameters["bias"])
        return MLPTape(self.activation, output.reshape(as_array("x", x).shape), rows, weights, below, hidden)


class MLPTape(RowwiseTape):
    """One forward pass of `MLP`: ``output``, the input, copies of the weights, and the values between the maps."""

    def __init__(
        self, activation: str, output: Array, rows: Array, weights: list[Array], below: Array, hidden: Array
    ) -> None:
        self.output = output
        self._activation, self._rows, self._weights = activation, rows, weights
        self._below, self._hidden = below, hidden  # before and after the activation; may be one array

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds."""
        between = [self._hidden] if self._below is self._hidden else [self._below, self._hidden]
        return sum(array.nbytes for array in [self.output, self._rows, *self._weights, *between])

    @with_room
    def backward(self, d_output: Any) -> LayerGradients:
        """Backpropagate. May be called repeatedly.

        Parameters
        ----------
        d_output : (..., size) array
            dL/doutput, of the shape and dtype of ``output``.

        Returns
        -------
        LayerGradients
            ``input`` (..., size) and ``parameters``, named as the layer's.

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape of `d_output` does not fit.
        """
        d_output = float_array("d_output", d_output, self.output.dtype, self.output.shape)
        d_rows = d_output.reshape(-1, d_output.shape[-1])
        d_below, second = affine_backward(d_rows, self._hidden, self._weights[1], True)
        d_bias = np.empty(d_below.shape[1], d_below.dtype)
        _core.activation_backward(self._activation, {"saved": self._below, "d": d_below, "d_bias": d_bias})
        d_input, first = affine_backward(d_below, self._rows, self._weights[0], False)
        parameters = {
            "linear1.weight": first["weight"],
            "linear1.bias": d_bias,
            "linear2.weight": second["weight"],
            "linear2.bias": second["bias"],
        }
        return LayerGradients(d_input.reshape(d_output.shape), parameters)
