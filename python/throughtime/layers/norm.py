"""The base class of LayerNorm and BatchNorm: normalisation of a pending sum, as residual blocks use it."""

from __future__ import annotations

from typing import Any

from .._arguments import Array, float_array
from .._scaled import Scaled
from .rows import LayerGradients, check_features
from .stream import Pass, PendingSum, StreamGradient, StreamLayer, StreamTape


class Norm(StreamLayer):
    """Base class of the norms. Each saves an object of a separate class for the backward."""

    eps: float

    def _normalise_stream(self, stream: PendingSum, run: Pass, *, keep_sum: bool) -> tuple[Array, Any]:
        """The output, and the saved values; None if nothing is saved. After a LayerNorm the sum may be lost."""
        raise NotImplementedError

    @staticmethod
    def _stream_backward(d_sum: Array | None, d: Array, saved: Any) -> tuple[StreamGradient, dict[str, Array]]:
        """The gradients of the sum and its branch, and of the parameters, from those of the sum and the output."""
        raise NotImplementedError

    @staticmethod
    def _scaled_stream_backward(d: Scaled, saved: Any) -> Scaled:
        """The gradient of the sum, from one of the output with an exponent for every row."""
        raise NotImplementedError

    def _tape(self, output: Array, saved: Any) -> NormTape:
        raise NotImplementedError

    def _advance(self, stream: PendingSum, run: Pass) -> tuple[PendingSum, NormTape | None]:
        check_features(self, stream.x)
        output, saved = self._normalise_stream(stream, run, keep_sum=False)
        return PendingSum(output), self._tape(output, saved) if run.save else None


class NormTape(StreamTape):
    """One forward pass of a norm."""

    _norm: type[Norm]

    def __init__(self, output: Array, saved: Any) -> None:
        self.output = output
        self._saved = saved

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds, without x."""
        return self.output.nbytes + int(self._saved.nbytes)

    def backward(self, d_output: Any) -> LayerGradients:
        """Backpropagate. May be called repeatedly.

        Parameters
        ----------
        d_output : (..., size) array
            dL/doutput, of the shape and dtype of ``output``.

        Returns
        -------
        LayerGradients
            ``input`` (..., size) and ``parameters`` with ``weight`` and ``bias`` (size,).

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape of `d_output` does not fit.
        """
        d = float_array("d_output", d_output, self.output.dtype, self.output.shape)
        return self._retreat(StreamGradient(d), {})[0]

    def _retreat(self, flow: StreamGradient, options: dict[str, Any]) -> tuple[LayerGradients, StreamGradient]:
        below, parameters = self._norm._stream_backward(None, flow.total, self._saved)
        return LayerGradients(below.total, parameters), below
