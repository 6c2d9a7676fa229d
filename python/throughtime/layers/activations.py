"""Elementwise activations as layers, for `Sequential`: ReLU, Tanh, Sigmoid and GELU."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .. import _core
from .._arguments import Array, as_array, check_dtype, float_array, is_layer_dtype
from .layer import Layer
from .rows import LayerGradients
from .scaled_backward import RowwiseTape

__all__ = ["GELU", "ReLU", "Sigmoid", "Tanh"]


class Activation(Layer):
    """Base class of the activations: no parameters, and an output of the input's shape."""

    _function: ClassVar[str]  # name of the kernel
    _elementwise = _rowwise = True

    def __init__(self, *, dtype: Any = None, seed: Any = None) -> None:
        self._set_up({}, {}, "float32" if dtype is None else dtype, seed)
        self._any_dtype = dtype is None
        if self._any_dtype:
            self._config["dtype"] = None

    def _cast(self, dtype: np.dtype[Any]) -> None:
        super()._cast(dtype)
        self._any_dtype = False

    def __call__(self, x: Any) -> Array:
        """Return the output (...) for `x` (...); nothing is saved."""
        return self._run(x, save=False)[0]

    def forward(self, x: Any) -> ActivationTape:
        """Compute the output and save the values that `ActivationTape.backward` needs.

        Parameters
        ----------
        x : (...) array
            Of any shape.

        Returns
        -------
        ActivationTape
            With ``output`` (...). The backward reads it: do not write into it before that.

        Raises
        ------
        TypeError
            If `x` is not an array of the layer's dtype, or of float32 or float64 if the layer has none.
        """
        return ActivationTape(self._function, *self._run(x, save=True))

    def _run(self, x: Any, *, save: bool) -> tuple[Array, Array]:
        """The output, and the argument of its derivative: the input for some functions, the output for others."""
        x = as_array("x", x)
        if not self._any_dtype:
            check_dtype("x", x, self.dtype)
        elif not is_layer_dtype(x.dtype):
            raise TypeError(f"x has dtype {x.dtype}, expected float32 or float64")
        saved = _rows(x)
        output = saved
        if save and _core.activation_of_argument(self._function):
            output = _core.empty(saved.shape, saved.dtype)
        bias = np.full(saved.shape[1], -0.0, saved.dtype)  # x + -0 is x, even if x is -0
        _core.activation_forward(self._function, {"x": saved, "bias": bias, "y": output})
        return output.reshape(x.shape), saved


def _rows(array: Array) -> Array:
    """A copy of the array as a matrix, which the kernels change in place."""
    width = array.shape[-1] if array.ndim and array.size else 1
    rows: Array = _core.empty((array.size // width, width), array.dtype)
    rows[...] = array.reshape(rows.shape)
    return rows


class ActivationTape(RowwiseTape):
    """One forward pass of an activation: ``output``, and the input if the derivative needs it."""

    def __init__(self, function: str, output: Array, saved: Array) -> None:
        self.output = output
        self._function, self._saved = function, saved

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds."""
        return self.output.nbytes + (0 if np.may_share_memory(self.output, self._saved) else self._saved.nbytes)

    def backward(self, d_output: Any) -> LayerGradients:
        """Backpropagate. May be called repeatedly.

        Parameters
        ----------
        d_output : (...) array
            dL/doutput, of the shape and dtype of ``output``.

        Returns
        -------
        LayerGradients
            ``input`` (...) and ``parameters``, which is empty.

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape of `d_output` does not fit.
        """
        d = _rows(float_array("d_output", d_output, self.output.dtype, self.output.shape))
        d_bias = np.empty(d.shape[1], d.dtype)
        _core.activation_backward(self._function, {"saved": self._saved, "d": d, "d_bias": d_bias})
        return LayerGradients(d.reshape(self.output.shape), {})


class ReLU(Activation, kind="ReLU"):
    """``y = max(x, 0)``, elementwise.

    Parameters
    ----------
    dtype : {"float32", "float64"}, optional
        Type of inputs and results. None: either, so that the layer fits into stacks of any dtype.
    seed : optional
        Accepted as for every layer, but unused.

    Raises
    ------
    TypeError
        If the dtype is not one of these.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> layers = [layer for k in range(100) for layer in (tt.Linear(8, 8, seed=k), tt.ReLU())]
    >>> stack = tt.init.apply(tt.Sequential(*layers), "kaiming", seed=0)
    >>> tape = stack.forward(np.ones((5, 8), np.float32))
    >>> tape.backward(np.ones_like(tape.output)).input.shape
    (5, 8)
    """

    _function = "relu"


class Tanh(Activation, kind="Tanh"):
    """``y = tanh(x)``, elementwise.

    Parameters
    ----------
    dtype, seed
        As for :class:`ReLU`.

    Raises
    ------
    TypeError
        As for :class:`ReLU`.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> tt.Tanh()(np.array([0.0, 20.0]))
    array([0., 1.])
    """

    _function = "tanh"


class Sigmoid(Activation, kind="Sigmoid"):
    """``y = 1 / (1 + exp(-x))``, elementwise.

    Parameters
    ----------
    dtype, seed
        As for :class:`ReLU`.

    Raises
    ------
    TypeError
        As for :class:`ReLU`.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> tt.Sigmoid()(np.array([0.0, 40.0]))
    array([0.5, 1. ])
    """

    _function = "sigmoid"


class GELU(Activation, kind="GELU"):
    """``y = x Phi(x)``, elementwise, with the exact normal distribution, not its approximation by tanh.

    Parameters
    ----------
    dtype, seed
        As for :class:`ReLU`.

    Raises
    ------
    TypeError
        As for :class:`ReLU`.

    References
    ----------
    Hendrycks and Gimpel 2016, "Gaussian error linear units".

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> tt.GELU()(np.array([0.0, 20.0]))
    array([ 0., 20.])
    """

    _function = "gelu"
