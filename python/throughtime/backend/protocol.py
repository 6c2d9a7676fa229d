"""The operations that differ by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._arguments import Array
from .._random import Draw

if TYPE_CHECKING:
    from .._core import LayerNormBackward, LayerNormForward, RecurrentGradients, RecurrentProblem


class Backend(Protocol):
    """The interface of `Host` and `Cuda`, which are classes without instances.

    Arrays of both support views and assignment as NumPy's do. Annotations say NumPy arrays and dtypes for both.
    """

    @property
    def device(self) -> str:
        """As ``layer.to`` takes it."""

    # Kernels

    def forward(self, cell: str, problem: RecurrentProblem) -> None: ...

    def backward(self, cell: str, problem: RecurrentProblem, gradients: RecurrentGradients) -> None: ...

    def layer_norm_forward(self, problem: LayerNormForward) -> None: ...

    def layer_norm_backward(self, problem: LayerNormBackward) -> None: ...

    def saved_shape(self, cell: str, dtype: Any, batch: int, units: int) -> tuple[int, ...]:
        """The shape of the values that a cell saves for one step."""

    # New arrays

    def empty(self, shape: tuple[int, ...], dtype: Any, /) -> Array: ...

    def zeros(self, shape: tuple[int, ...], dtype: Any, /) -> Array: ...

    def stack(self, arrays: Sequence[Array], /) -> Array: ...

    def dropped(self, array: Array, mask: Array, probability: float, /) -> Array:
        """Dropout, or its gradient: zero where the mask is true, other values scaled by 1 / (1 - p)."""

    def scaled(self, array: Array, factor: float, /) -> Array:
        """`factor` times the array."""

    def random_mask(self, draw: Draw, shape: tuple[int, ...], probability: float) -> Array:
        """True with that probability."""

    # Arrays as they are

    def contiguous(self, array: Array) -> Array:
        """`array` itself if it is in C order and aligned, else a copy."""

    def features_together(self, array: Array) -> Array:
        """`array` itself if its last axis is contiguous and its strides are whole elements, else a copy."""

    def finite(self, array: Array, /) -> Array:
        """Whether all numbers are finite, for each entry of the first axis; on the host."""

    def owner(self, array: Array) -> Array:
        """The array that owns the memory of this view."""

    # Arguments

    def as_array(self, name: str, value: Any) -> Array: ...

    def check_dtype(self, name: str, array: Array, dtype: Any) -> None: ...

    def float_array(self, name: str, value: Any, dtype: Any, shape: Sequence[int | str]) -> Array: ...

    def bool_array(self, name: str, value: Any, shape: Sequence[int | str], /) -> Array: ...

    def sequence_lengths(self, lengths: Any, steps: int, batch: int, batched: bool) -> Array | None: ...

    def check_parameters(
        self, parameters: Mapping[str, Any], dtype: Any, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Raise unless each is an array of this dtype and shape, contiguous, on this device."""

    # Between here and the host

    def layer_dtype(self, dtype: Any, /) -> Any:
        """The dtype of a layer here."""

    def float_like(self, dtype: Any) -> Any:
        """`dtype` itself if there are kernels for it, else one that has kernels."""

    def sum_dtype(self, dtype: Any) -> Any:
        """The dtype in which numbers of `dtype` are summed."""

    def placed(self, array: Array, dtype: Any, /) -> Array:
        """A copy of a NumPy array on this device."""

    def on_host(self, name: str, value: Any) -> Array:
        """Any array that this backend reads, as a NumPy array."""
