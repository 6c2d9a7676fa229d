"""NumPy arrays, and the kernels of `_core`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import _arguments, _core
from .._arguments import Array
from .._memory import with_room
from .._random import Draw, threshold
from ..cuda.array import DeviceArray

if TYPE_CHECKING:
    from .._core import LayerNormBackward, LayerNormForward, RecurrentGradients, RecurrentProblem


class Host:
    """The backend of the CPU; see protocol.py."""

    device = "cpu"

    # Kernels

    @staticmethod
    def forward(cell: str, problem: RecurrentProblem) -> None:
        _core.forward(cell, problem)

    @staticmethod
    def backward(cell: str, problem: RecurrentProblem, gradients: RecurrentGradients) -> None:
        _core.backward(cell, problem, gradients)

    @staticmethod
    def layer_norm_forward(problem: LayerNormForward) -> None:
        _core.layer_norm_forward(problem)

    @staticmethod
    def layer_norm_backward(problem: LayerNormBackward) -> None:
        _core.layer_norm_backward(problem)

    @staticmethod
    def saved_shape(cell: str, dtype: Any, batch: int, units: int) -> tuple[int, ...]:
        """The shape of the values that a cell saves for one step."""
        whole_rows, vectors, *rest = _saved_layout(cell, dtype == np.float64, units)
        return (batch, vectors, *rest) if whole_rows else (vectors, batch, *rest)

    # New arrays

    empty = staticmethod(_core.empty)
    zeros: ClassVar[Callable[[tuple[int, ...], Any], Array]] = with_room(np.zeros)
    stack = staticmethod(with_room(np.stack))

    @staticmethod
    @with_room
    def dropped(array: Array, mask: Array, probability: float) -> Array:
        """Dropout, or its gradient: zero where the mask is true, other values scaled by 1 / (1 - p)."""
        number_type = array.dtype.type
        kept = number_type(1 - probability)
        dropped: Array = np.where(mask, number_type(0), array) * (number_type(1) / kept if kept else number_type(0))
        return dropped

    @staticmethod
    @with_room
    def scaled(array: Array, factor: float) -> Array:
        """`factor` times the array."""
        scaled: Array = array * array.dtype.type(factor)
        return scaled

    @staticmethod
    @with_room
    def random_mask(draw: Draw, shape: tuple[int, ...], probability: float) -> Array:
        """True with that probability, rounded to a multiple of 2^-32."""
        below = threshold(probability)
        if below == 1 << 32:
            return np.ones(shape, np.bool_)
        mask: Array = np.less(draw.words(math.prod(shape)), np.uint32(below))
        return mask.reshape(shape)

    # Arrays as they are

    contiguous = staticmethod(_arguments.contiguous)
    features_together = staticmethod(_arguments.features_together)

    @staticmethod
    @with_room
    def finite(array: Array) -> Array:
        """Whether all numbers are finite, for each entry of the first axis; on the host."""
        return np.asarray(np.isfinite(array).all(axis=tuple(range(1, array.ndim))))

    @staticmethod
    def owner(array: Array) -> Array:
        """The array that owns the memory of this view."""
        while isinstance(array.base, np.ndarray):
            array = array.base
        return array

    # Arguments

    as_array = staticmethod(_arguments.as_array)
    check_dtype = staticmethod(_arguments.check_dtype)
    float_array = staticmethod(_arguments.float_array)
    bool_array = staticmethod(_arguments.bool_array)
    sequence_lengths = staticmethod(_arguments.sequence_lengths)

    @staticmethod
    def check_parameters(
        parameters: Mapping[str, Any], dtype: np.dtype[Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Raise unless each is an array of this dtype and shape, contiguous, on this device."""
        for name, shape in shapes.items():
            array = parameters[name]
            if type(array) is np.ndarray and array.dtype == dtype and array.shape == shape and array.flags.carray:
                continue
            if not isinstance(array, np.ndarray):
                raise TypeError(f"parameters[{name!r}] must be a NumPy array, got {type(array).__name__}")
            _arguments.float_array(f"parameters[{name!r}]", array, dtype, shape)
            if _arguments.contiguous(array) is not array:
                raise ValueError(
                    f"parameters[{name!r}] must be contiguous and aligned: write into it, do not replace it"
                )

    # Between here and the host

    layer_dtype = staticmethod(_arguments.float_dtype)

    @staticmethod
    def float_like(dtype: np.dtype[Any]) -> np.dtype[Any]:
        """`dtype` itself if there are kernels for it, else one that has kernels."""
        return np.dtype(np.float64 if dtype == np.float64 else np.float32)

    @staticmethod
    def sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype in which numbers of `dtype` are summed."""
        return dtype

    @staticmethod
    def placed(array: Array, dtype: np.dtype[Any]) -> Array:
        """A copy of a NumPy array on this device."""
        return array.astype(dtype)

    @staticmethod
    def on_host(name: str, value: Any) -> Array:
        """Any array that this backend reads, as a NumPy array."""
        return value.numpy() if isinstance(value, DeviceArray) else _arguments.as_host_floats(name, value)


@lru_cache(maxsize=1024)
def _saved_layout(cell: str, float64: bool, units: int) -> tuple[int, ...]:
    """Whether the cell sees whole rows, then the shape of the values that it saves for one step, without the batch."""
    return (_core.sees_whole_rows(cell), *_core.saved_shape(cell, float64, units))
