"""The operations that differ by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .._arguments import Array

if TYPE_CHECKING:
    from .._core import LayerNormBackward, LayerNormForward, RecurrentGradients, RecurrentProblem


class Backend(Protocol):
    """What tapes and layers ask of the place where their arrays are: `Host` or `Cuda`, classes without instances.

    Views, and writing into them, are the arrays' own, as NumPy has them. Annotations say NumPy arrays and dtypes for
    both.
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
        """Of what the backward needs of one step."""

    # New arrays

    def empty(self, shape: tuple[int, ...], dtype: Any, /) -> Array: ...

    def zeros(self, shape: tuple[int, ...], dtype: Any, /) -> Array: ...

    def stack(self, arrays: Sequence[Array], /) -> Array: ...

    def dropped(self, array: Array, mask: Array, probability: float, /) -> Array:
        """Dropout, and its own gradient: zero where the mask is true, the others scaled by 1 / (1 - p)."""

    def scaled(self, array: Array, factor: float, /) -> Array:
        """`factor` times the array."""

    def random_mask(self, rng: np.random.Generator, shape: tuple[int, ...], probability: float) -> Array:
        """True with that probability."""

    # Arrays as they are

    def contiguous(self, array: Array) -> Array:
        """`array` itself where it is in C order and aligned, else a copy."""

    def features_together(self, array: Array) -> Array:
        """`array` itself where its last axis is contiguous and its strides are whole elements, else a copy."""

    def finite(self, array: Array, /) -> Array:
        """Of every entry of the first axis, whether all its numbers are finite; on the host."""

    def owner(self, array: Array) -> Array:
        """The array whose memory this one shows."""

    # What comes in

    def as_array(self, name: str, value: Any) -> Array: ...

    def check_dtype(self, name: str, array: Array, dtype: Any) -> None: ...

    def float_array(self, name: str, value: Any, dtype: Any, shape: Sequence[int | str]) -> Array: ...

    def bool_array(self, name: str, value: Any, shape: Sequence[int | str], /) -> Array: ...

    def sequence_lengths(self, lengths: Any, steps: int, batch: int, batched: bool) -> Array | None: ...

    def check_parameters(
        self, parameters: Mapping[str, Any], dtype: Any, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Raise unless each is an array such as the layer made."""

    # Between here and the host

    def layer_dtype(self, dtype: Any, /) -> Any:
        """The dtype of a layer here."""

    def float_like(self, dtype: Any) -> Any:
        """`dtype` where kernels take it, else one that they take."""

    def sum_dtype(self, dtype: Any) -> Any:
        """In what numbers of `dtype` are summed."""

    def placed(self, array: Array, dtype: Any, /) -> Array:
        """An array of the host, here."""

    def on_host(self, name: str, value: Any) -> Array:
        """Any array that this backend reads, as NumPy's."""
