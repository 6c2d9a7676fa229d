"""LayerNorm: each row normalised over its features."""

from __future__ import annotations

from typing import Any

from .._arguments import Array, as_array
from .._arguments import size as positive_int
from .._scaled import Scaled, scaled
from . import add_layer_norm as layer_norm
from .norm import Norm, NormTape
from .scaled_backward import RowwiseTape
from .stream import Pass, PendingSum, StreamGradient, streamed

__all__ = ["LayerNorm"]


class LayerNorm(Norm, kind="LayerNorm"):
    """``y = (x - mean) / sqrt(variance + eps) weight + bias`` over the last axis (Ba et al. 2016).

    Parameters ``weight (size,)`` and ``bias (size,)`` start as ones and zeros, as in ``torch.nn.LayerNorm``. In a
    :class:`Sequential`, the addition of a preceding :class:`ResidualBlock` is part of the same kernel.

    Parameters
    ----------
    size : int
        Features of x and y.
    eps : float
        Added to the variance, for numerical stability.
    dtype : {"float32", "float64"}
        Type of parameters, inputs and results.
    seed : optional
        Accepted as for every layer, but unused.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtype is not one of these.
    ValueError
        If `size` is below 1, or `eps` is not above 0.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> tape = tt.LayerNorm(4).forward(np.array([[1, 2, 3, 4]], np.float32))
    >>> tape.output.round(2)
    array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
    >>> tape.backward(np.ones_like(tape.output)).parameters["bias"].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    _rowwise = True

    def __init__(self, size: int, eps: float = 1e-5, *, dtype: Any = "float32", seed: Any = None) -> None:
        self.input_size: int = positive_int("size", size)
        self.output_size: int = self.input_size
        self.eps: float = layer_norm.check_eps(eps)
        shape = (self.input_size,)
        self._set_up({"size": self.input_size, "eps": self.eps}, {"weight": shape, "bias": shape}, dtype, seed)
        self.parameters["weight"][...] = 1

    def __call__(self, x: Any) -> Array:
        """Return the output (..., size) for `x` (..., size); nothing is saved."""
        stream, _ = self._advance(PendingSum(as_array("x", x)), Pass({}, save=False, masks={}))
        return stream.materialise()

    @streamed
    def forward(self, x: Any) -> LayerNormTape:
        """Compute the output and save the values that `LayerNormTape.backward` needs.

        Parameters
        ----------
        x : (..., size) array
            Of the layer's dtype, with any leading axes. The tape keeps a reference to it.

        Returns
        -------
        LayerNormTape
            With ``output`` (..., size).

        Raises
        ------
        TypeError
            If `x` is not an array of the layer's dtype.
        ValueError
            If the last axis of `x` has another size.
        """
        _, tape = self._advance(PendingSum(as_array("x", x)), Pass({}, save=True, masks={}))
        assert isinstance(tape, LayerNormTape)
        return tape

    def _normalise_stream(self, stream: PendingSum, run: Pass, *, keep_sum: bool) -> tuple[Array, Any]:
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        return stream.normalise(weight, bias, self.eps, save=run.save, keep_sum=keep_sum)

    @staticmethod
    def _stream_backward(d_sum: Array | None, d: Array, saved: Any) -> tuple[StreamGradient, dict[str, Array]]:
        d_x, d_branch, d_weight, d_bias = layer_norm.backward(d_sum, d, saved)
        return StreamGradient(d_x, d_branch if saved.added else None), {"weight": d_weight, "bias": d_bias}

    @staticmethod
    def _scaled_stream_backward(d: Scaled, saved: Any) -> Scaled:
        return scaled(layer_norm.backward(None, d.dense, saved)[0], d.exponent)

    def _tape(self, output: Array, saved: Any) -> LayerNormTape:
        return LayerNormTape(output, saved)


class LayerNormTape(RowwiseTape, NormTape):
    """One forward pass of `LayerNorm`: ``output``, the input, four numbers per row, and a copy of the weight."""

    _norm = LayerNorm
