"""Functions that draw one array of initial weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import numpy as np

from .._arguments import Array, check_shapes, choice, float_dtype, number, size
from ..recurrent.architecture import gates_of

_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": None, "selu": 3 / 4}
LARGEST = float(np.finfo(np.float32).max)

P = ParamSpec("P")


def _returns_an_array(function: Callable[P, Array]) -> Callable[P, Array]:
    """If the caller passes a layer, or the weights to be set, raise an error that explains what the function does."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Array:
        shape: Any = args[0] if args else kwargs.get("shape", ())
        is_weights = _is_weights(shape)
        if is_weights or isinstance(shape, Mapping) or hasattr(shape, "parameters"):
            name = function.__name__
            got = f"an array of shape {tuple(shape.shape)}" if is_weights else type(shape).__name__
            raise TypeError(
                f"shape must be a tuple of ints, got {got}; {name} returns a new array and sets nothing: "
                f"weight[...] = tt.init.{name}(weight.shape, rng, ...), "
                f"or tt.init.apply(layer, {_recipe_of(name)!r}) for a whole layer"
            )
        return function(*args, **kwargs)

    return checked


def _is_weights(value: Any) -> bool:
    """Whether this is an array of weights, not of sizes: NumPy's, or that of another library such as torch."""
    if not isinstance(value, np.ndarray):
        return hasattr(value, "shape") and hasattr(value, "dtype")
    return value.ndim != 1 or not np.issubdtype(value.dtype, np.integer)


def _recipe_of(name: str) -> str:
    return name.removesuffix("_uniform").removesuffix("_normal")


@_returns_an_array
def xavier_uniform(
    shape: Sequence[int], rng: np.random.Generator, gain: float = 1.0, *, dtype: Any = "float32"
) -> Array:
    """Draw from U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)), which preserves variances in both directions.

    Parameters
    ----------
    shape : (rows, columns, ...)
        fan_out is ``rows`` and fan_in ``columns``, each times the sizes of the remaining axes.
    rng : numpy.random.Generator
        Source of the random numbers.
    gain : float
        Scale of the result; 5/3 suits tanh.
    dtype : {"float32", "float64"}
        Type of the result.

    Returns
    -------
    array of `shape`

    Raises
    ------
    TypeError
        If `rng` is not a Generator, or the dtype is not one of these.
    ValueError
        If `shape` has fewer than two axes, or `gain` is not finite.

    References
    ----------
    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", equation 16.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> weight = tt.init.xavier_uniform((4, 2), np.random.default_rng(0))
    >>> weight.shape, bool(abs(weight).max() <= 1.0)
    ((4, 2), True)
    """
    shape = _matrix_shape(shape)
    return _uniform(shape, rng, _gain_number(gain) * math.sqrt(6 / sum(_fans(shape))), dtype)


@_returns_an_array
def xavier_normal(
    shape: Sequence[int], rng: np.random.Generator, gain: float = 1.0, *, dtype: Any = "float32"
) -> Array:
    """Draw from N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)): `xavier_uniform` with a normal distribution.

    Parameters
    ----------
    shape, rng, gain, dtype
        As for `xavier_uniform`.

    Returns
    -------
    array of `shape`

    References
    ----------
    Glorot and Bengio 2010, equation 12.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> tt.init.xavier_normal((4, 2), np.random.default_rng(0), dtype="float64").dtype
    dtype('float64')
    """
    shape = _matrix_shape(shape)
    return _normal(shape, rng, _gain_number(gain) * math.sqrt(2 / sum(_fans(shape))), dtype)


@_returns_an_array
def kaiming_uniform(
    shape: Sequence[int],
    rng: np.random.Generator,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    dtype: Any = "float32",
) -> Array:
    """Draw from U(-b, b), b = gain sqrt(3 / fan), which preserves the variance through rectifiers.

    Parameters
    ----------
    shape : (rows, columns, ...)
        fan_out is ``rows`` and fan_in ``columns``, each times the sizes of the remaining axes.
    rng : numpy.random.Generator
        Source of the random numbers.
    a : float
        Slope of the leaky ReLU below zero, gain = sqrt(2 / (1 + a^2)); other nonlinearities ignore it.
    mode : {"fan_in", "fan_out"}
        Whether to preserve variances forward or backward.
    nonlinearity : {"linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"}
        Determines the gain: 1, 1, 5/3, sqrt(2), see `a`, 3/4.
    dtype : {"float32", "float64"}
        Type of the result.

    Returns
    -------
    array of `shape`

    Raises
    ------
    TypeError, ValueError
        As for `xavier_uniform`, and if `mode` or `nonlinearity` is unknown.

    References
    ----------
    He et al. 2015, "Delving deep into rectifiers", equations 10, 14 and 15.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> weight = tt.init.kaiming_uniform((4, 6), np.random.default_rng(0), nonlinearity="relu")
    >>> bool(abs(weight).max() <= 1.0)
    True
    """
    shape = _matrix_shape(shape)
    return _uniform(shape, rng, math.sqrt(3) * _kaiming_deviation(shape, a, mode, nonlinearity), dtype)


@_returns_an_array
def kaiming_normal(
    shape: Sequence[int],
    rng: np.random.Generator,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    dtype: Any = "float32",
) -> Array:
    """Draw from N(0, s^2), s = gain / sqrt(fan): `kaiming_uniform` with a normal distribution.

    Parameters
    ----------
    shape, rng, a, mode, nonlinearity, dtype
        As for `kaiming_uniform`.

    Returns
    -------
    array of `shape`

    References
    ----------
    He et al. 2015, "Delving deep into rectifiers", equations 10, 14 and 15.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> tt.init.kaiming_normal((4, 6), np.random.default_rng(0), mode="fan_out").shape
    (4, 6)
    """
    shape = _matrix_shape(shape)
    return _normal(shape, rng, _kaiming_deviation(shape, a, mode, nonlinearity), dtype)


@_returns_an_array
def orthogonal(
    shape: Sequence[int], rng: np.random.Generator, gain: float = 1.0, *, gates: int = 1, dtype: Any = "float32"
) -> Array:
    """Draw a (semi-)orthogonal matrix, uniformly over all of them: QR of a normal matrix, signs fixed by R's diagonal.

    Parameters
    ----------
    shape : (rows, columns, ...)
        Axes after the first are flattened. With more rows than columns, the columns are orthonormal; with fewer, the
        rows.
    rng : numpy.random.Generator
        Source of the random numbers.
    gain : float
        Scale of the result.
    gates : int
        Number of matrices that are stacked along the first axis, each of them orthogonal: 4 for the ``weight_hh`` of an
        LSTM, 3 for a GRU's.
    dtype : {"float32", "float64"}
        Type of the result.

    Returns
    -------
    array of `shape`

    Raises
    ------
    ValueError
        If `gates` does not divide the rows.

    References
    ----------
    Saxe, McClelland and Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks"; Mezzadri 2007, "How to generate random matrices from the classical compact groups", for the signs.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> weight = tt.init.orthogonal((12, 3), np.random.default_rng(0), gates=4)
    >>> all(np.allclose(block.T @ block, np.eye(3), atol=1e-6) for block in np.split(weight, 4))
    True
    """
    shape = _matrix_shape(shape)
    scale, blocks = _gain_number(gain), size("gates", gates)
    if shape[0] % blocks:
        raise ValueError(f"gates must divide the rows of shape, got gates={blocks} and shape {shape}")
    rows, columns = shape[0] // blocks, math.prod(shape[1:])
    stack = [_orthogonal_block(rows, columns, _generator(rng)) for _ in range(blocks)]
    weight: Array = (scale * np.concatenate(stack)).reshape(shape).astype(float_dtype(dtype))
    return weight


@_returns_an_array
def identity(
    shape: Sequence[int],
    rng: np.random.Generator | None = None,
    scale: float = 1.0,
    *,
    gates: int = 1,
    dtype: Any = "float32",
) -> Array:
    """Return `scale` times the identity: the IRNN's recurrent weights, with which a ReLU unit keeps its value.

    Parameters
    ----------
    shape : (rows, columns)
        Entries outside the square are zero.
    rng : numpy.random.Generator, optional
        Unused; present so that all initialisers have the same signature.
    scale : float
        Value of the diagonal; below 1, the value of a unit decays.
    gates : int
        Number of such matrices that are stacked along the first axis.
    dtype : {"float32", "float64"}
        Type of the result.

    Returns
    -------
    array of `shape`

    Raises
    ------
    ValueError
        If `shape` does not have two axes, or `gates` does not divide the rows.

    References
    ----------
    Le, Jaitly and Hinton 2015, "A simple way to initialize recurrent networks of rectified linear units".

    Examples
    --------
    >>> import throughtime as tt
    >>> tt.init.identity((2, 2), scale=0.5)
    array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)
    """
    shape = _matrix_shape(shape)
    blocks = size("gates", gates)
    if len(shape) != 2:
        raise ValueError(f"shape must have two axes (rows, columns), got {shape}")
    if shape[0] % blocks:
        raise ValueError(f"gates must divide the rows of shape, got gates={blocks} and shape {shape}")
    block = np.eye(shape[0] // blocks, shape[1], dtype=float_dtype(dtype))
    block *= _finite("scale", scale)
    return np.tile(block, (blocks, 1))


@_returns_an_array
def chrono(
    shape: Sequence[int], rng: np.random.Generator, max_steps: float, *, cell: str = "lstm", dtype: Any = "float32"
) -> Array:
    """Draw gate biases that make units remember for between 1 and `max_steps` steps.

    LSTM (gates i f g o): ``b_f = log u, b_i = -b_f``, with u from U(1, max_steps - 1), the rest zero.
    GRU (gates r z n; z keeps the old state): ``b_z = log u``, the rest zero.

    Parameters
    ----------
    shape : (G*H,)
        Shape of the bias: 4H for an LSTM, 3H for a GRU. Write the bias into ``bias_ih`` and zeros into ``bias_hh``: the
        cell adds the two.
    rng : numpy.random.Generator
        Source of the random numbers.
    max_steps : float
        The longest expected dependency, at least 2 steps.
    cell : {"lstm", "gru"}
        The cell of the bias.
    dtype : {"float32", "float64"}
        Type of the result.

    Returns
    -------
    array of `shape`

    Raises
    ------
    ValueError
        If `shape` is not one axis of a multiple of the cell's gates, or `max_steps` is below 2.

    References
    ----------
    Tallec and Ollivier 2018, "Can recurrent neural networks warp time?", section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> lstm = tt.LSTM(3, 5, seed=0)
    >>> lstm.parameters["bias_ih_l0"][...] = tt.init.chrono((20,), np.random.default_rng(0), max_steps=100)
    >>> lstm.parameters["bias_hh_l0"][...] = 0
    """
    gates = gates_of(choice("cell", cell, ("lstm", "gru")))
    sizes = _shape(shape)
    if len(sizes) != 1 or sizes[0] % len(gates):
        raise ValueError(f"shape must be ({len(gates)} * hidden_size,) for cell={cell!r}, got {sizes}")
    longest = number("max_steps", max_steps, 2, LARGEST)
    return gate_biases(gates, sizes[0] // len(gates), _generator(rng), longest, float_dtype(dtype))


def gate_biases(gates: str, units: int, rng: np.random.Generator, max_steps: float, dtype: Any) -> Array:
    """The biases of `chrono` for these gates, as `gates_of` names them: f and z open, i shut to the same extent."""
    bias = np.zeros((len(gates), units), dtype)
    logarithms = np.log(rng.uniform(1, max_steps - 1, units))
    for own, gate in zip(bias, gates, strict=True):
        if gate in "fz":
            own[:] = logarithms
        elif gate == "i":
            own[:] = -logarithms
    return bias.reshape(-1)


def _generator(rng: Any) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator (np.random.default_rng(seed)), got {rng!r}")
    return rng


def _shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple of ints, got {shape!r}") from None
    sizes = tuple(size(f"shape[{axis}]", value) for axis, value in enumerate(sizes))
    check_shapes("an array of this shape", {"shape": sizes}, np.dtype(np.float64).itemsize)
    return sizes


def _matrix_shape(shape: Any) -> tuple[int, ...]:
    sizes = _shape(shape)
    if len(sizes) < 2:
        raise ValueError(f"shape must have at least two axes (rows, columns), got {sizes}")
    return sizes


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out), as torch counts them."""
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _finite(name: str, value: Any) -> float:
    return number(name, value, -LARGEST, LARGEST)


def _gain_number(gain: Any) -> float:
    return number("gain", gain, 0, LARGEST)


def _kaiming_deviation(shape: tuple[int, ...], a: Any, mode: str, nonlinearity: str) -> float:
    slope = _finite("a", a)
    fan_in, fan_out = _fans(shape)
    fan = fan_in if choice("mode", mode, ("fan_in", "fan_out")) == "fan_in" else fan_out
    gain = _GAINS[choice("nonlinearity", nonlinearity, tuple(_GAINS))]
    return (math.sqrt(2 / (1 + slope * slope)) if gain is None else gain) / math.sqrt(fan)


def _uniform(shape: tuple[int, ...], rng: Any, bound: float, dtype: Any) -> Array:
    return _generator(rng).uniform(-bound, bound, shape).astype(float_dtype(dtype))


def _normal(shape: tuple[int, ...], rng: Any, deviation: float, dtype: Any) -> Array:
    return (deviation * _generator(rng).standard_normal(shape)).astype(float_dtype(dtype))


def _orthogonal_block(rows: int, columns: int, rng: np.random.Generator) -> Array:
    tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # LAPACK's signs are a convention, not a draw
    return q if rows >= columns else q.T
