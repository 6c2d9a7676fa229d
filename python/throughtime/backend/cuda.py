"""Arrays on a CUDA device, and the kernels of `_cuda`. Annotations say NumPy arrays, as in `protocol`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arguments, _core
from .._arguments import Array
from .._random import Draw, threshold
from ..cuda.array import DeviceArray, as_device_array, empty, is_on_device, to_device, zeros
from ..cuda.dtypes import FLOATS, dtype_name, float_name
from ..cuda.extension import current_stream, extension

if TYPE_CHECKING:
    from .._core import LayerNormBackward, LayerNormForward, RecurrentGradients, RecurrentProblem

OnDevice = Any  # a DeviceArray, which `Backend` calls a NumPy array
_forced: dict[str, Any] = {"mode": "free", "chunk": 0, "multiprocessors": 0, "shared_bytes": 0}  # the recurrence's
_forced_blocks = {"blocks": 0}  # that of LayerNorm's backward


@contextmanager
def force(*, blocks: int = 0, **of_recurrence: Any) -> Iterator[None]:
    """For tests, override the mode of the recurrence or the size of the device, and the number of blocks in LayerNorm's
    backward. Raises an error if the override does not fit.
    """
    before = dict(_forced), dict(_forced_blocks)
    _forced.update(of_recurrence)
    _forced_blocks.update(blocks=blocks)
    try:
        yield
    finally:
        _forced.update(before[0])
        _forced_blocks.update(before[1])


class Cuda:
    """The backend of the current device; its kernels are queued on the current stream. See protocol.py."""

    device = "cuda"

    # Kernels

    @staticmethod
    def forward(cell: str, problem: RecurrentProblem) -> None:
        extension().forward(cell, _recurrent_call(problem))

    @staticmethod
    def backward(cell: str, problem: RecurrentProblem, gradients: RecurrentGradients) -> None:
        extension().backward(cell, _recurrent_call(problem), _held(gradients))

    @staticmethod
    def layer_norm_forward(problem: LayerNormForward) -> None:
        extension().layer_norm_forward(_call(problem, problem["x"].dtype))

    @staticmethod
    def layer_norm_backward(problem: LayerNormBackward) -> None:
        extension().layer_norm_backward(_call(problem, problem["sum"].dtype, **_forced_blocks))

    @staticmethod
    def saved_shape(cell: str, dtype: Any, batch: int, units: int) -> tuple[int, ...]:
        return (batch, *extension().saved_shape(cell, units))

    # New arrays

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        return empty(shape, dtype_name(dtype))

    @staticmethod
    def zeros(shape: tuple[int, ...], dtype: Any) -> Any:
        return zeros(shape, dtype_name(dtype))

    @staticmethod
    def stack(arrays: Sequence[OnDevice]) -> Any:
        stacked = empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
        for index, array in enumerate(arrays):
            stacked[index] = array
        return stacked

    @staticmethod
    def dropped(array: OnDevice, mask: OnDevice, probability: float) -> Any:
        number_type = np.float32
        kept = number_type(1 - probability)
        scale = float(number_type(1) / kept if kept else 0)
        array, mask = array.contiguous(), mask.contiguous()
        found = empty(array.shape, array.dtype)
        extension().drop(found._view, array._view, mask._view, scale, array.dtype, current_stream())
        return found

    @staticmethod
    def scaled(array: OnDevice, factor: float) -> Any:
        array = array.contiguous()
        found = empty(array.shape, array.dtype)
        extension().drop(found._view, array._view, None, factor, array.dtype, current_stream())
        return found

    @staticmethod
    def random_mask(draw: Draw, shape: tuple[int, ...], probability: float) -> Any:
        mask = empty(shape, "bool")
        extension().draw_mask(mask._view, threshold(probability), *draw.key, draw.mask, draw.number, current_stream())
        return mask

    # Arrays as they are

    @staticmethod
    def contiguous(array: OnDevice) -> Any:
        return array.contiguous()

    @staticmethod
    def features_together(array: OnDevice) -> Any:
        item, view = array.itemsize, array._view
        together = view.strides[-1] == item or view.shape[-1] == 1
        if together and view.flags.aligned and not any(stride % item for stride in view.strides):
            return array
        return array.copy()

    @staticmethod
    def finite(array: OnDevice) -> Any:
        found = empty(array.shape[:1], "bool")
        extension().finite_rows(found._view, array.contiguous()._view, array.dtype, current_stream())
        return found.numpy()

    @staticmethod
    def owner(array: OnDevice) -> Any:
        view = array._view
        while isinstance(view.base, np.ndarray):
            view = view.base
        return view

    # Arguments

    @staticmethod
    def as_array(name: str, value: Any) -> Any:
        return as_device_array(name, value)

    @staticmethod
    def check_dtype(name: str, array: OnDevice, dtype: Any) -> None:
        if array.dtype != dtype:
            raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype} (nothing is cast)")

    @staticmethod
    def float_array(name: str, value: Any, dtype: Any, shape: Sequence[int | str]) -> Any:
        array = as_device_array(name, value)
        Cuda.check_dtype(name, array, dtype)
        _arguments.check_shape(name, array, shape)
        return array

    @staticmethod
    def bool_array(name: str, value: Any, shape: Sequence[int | str]) -> Any:
        if not is_on_device(value):
            return to_device(_arguments.bool_array(name, value, shape))
        array = as_device_array(name, value)
        Cuda.check_dtype(name, array, "bool")
        _arguments.check_shape(name, array, shape)
        return array.copy()

    @staticmethod
    def sequence_lengths(lengths: Any, steps: int, batch: int, batched: bool) -> Any:
        given = as_device_array("lengths", lengths).numpy() if is_on_device(lengths) else lengths
        checked = _arguments.sequence_lengths(given, steps, batch, batched)
        return None if checked is None else to_device(checked)

    @staticmethod
    def check_parameters(parameters: Mapping[str, Any], dtype: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            array = parameters[name]
            if not isinstance(array, DeviceArray):
                raise TypeError(f"parameters[{name!r}] must be a DeviceArray, got {type(array).__name__}")
            Cuda.float_array(f"parameters[{name!r}]", array, dtype, shape)
            if array.contiguous() is not array:
                raise ValueError(f"parameters[{name!r}] must be contiguous: write into it, do not replace it")

    # Between here and the host

    layer_dtype = staticmethod(float_name)

    @staticmethod
    def float_like(dtype: Any) -> Any:
        return dtype if dtype in FLOATS else "float32"

    @staticmethod
    def sum_dtype(dtype: Any) -> Any:
        return "float32"

    @staticmethod
    def placed(array: Array, dtype: Any) -> Any:
        return to_device(array, dtype)

    @staticmethod
    def on_host(name: str, value: Any) -> Any:
        return as_device_array(name, value).numpy() if is_on_device(value) else _arguments.as_host_floats(name, value)


def _recurrent_call(problem: RecurrentProblem) -> dict[str, Any]:
    return _call(problem, problem["x"].dtype, terms=problem["terms"] or _core.get_terms(), **_forced)


def _call(problem: Mapping[str, Any], dtype: Any, **own: Any) -> dict[str, Any]:
    return _held(problem) | {"type": dtype, "stream": current_stream()} | own


def _held(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The problem with its arrays as the kernels take them."""
    return {name: value._view if isinstance(value, DeviceArray) else value for name, value in problem.items()} | {
        name: _held(value) for name, value in problem.items() if isinstance(value, dict)
    }
