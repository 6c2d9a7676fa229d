"""BatchNorm: each feature normalised over all timesteps and sequences. Sums in float64, over blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .._arguments import Array, as_array, contiguous, flag, number, valid_steps
from .._arguments import size as positive_int
from .._memory import with_room, writable
from .._saved import claim
from .._scaled import Scaled
from .add_layer_norm import check_eps
from .norm import Norm, NormTape
from .rows import check_features
from .scaled_backward import Way, superposed
from .stream import Pass, PendingSum, StreamGradient, streamed

__all__ = ["BatchNorm"]

_BLOCK = 1 << 14  # numbers converted to float64 at a time: two such arrays fit in a cache of 512 kB
_as_numbers_are = np.errstate(all="ignore")  # no warnings: infinities and NaN stay in their feature


class BatchNorm(Norm, kind="BatchNorm"):
    """``y = (x - mean) / sqrt(variance + eps) weight + bias``, of each feature over timesteps and batch.

    In training, mean and variance are those of x (Ioffe and Szegedy 2015), so the output and the gradient of each row
    depend on all other rows of the batch, later timesteps included. At inference they are the running statistics. Both
    are as in ``torch.nn.BatchNorm1d``, whose state dict loads as it is. Parameters ``weight (size,)`` and
    ``bias (size,)`` start as ones and zeros.

    Parameters
    ----------
    size : int
        Features of x and y.
    eps : float
        Added to the variance, for numerical stability.
    momentum : float or None
        Weight of each training batch in the running statistics: ``running = (1 - momentum) running + momentum found``,
        with n / (n - 1) times the variance of the n rows. None: the mean over all training batches so far.
    dtype : {"float32", "float64"}
        Type of parameters, inputs and results.
    seed : optional
        Accepted as for every layer, but unused.

    Attributes
    ----------
    buffers : dict of str to array
        ``running_mean (size,)``, zeros at first, ``running_var (size,)``, ones at first, and
        ``num_batches_tracked ()``, an int64. They are saved, loaded and copied with the parameters. Optimisers do not
        change them.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtype is not one of these.
    ValueError
        If `size` is below 1, `eps` is not above 0, or `momentum` is outside [0, 1].

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> norm = tt.BatchNorm(1)
    >>> x = np.array([[[1], [3]], [[5], [7]]], np.float32)  # (T, B, F)
    >>> norm.forward(x).output.ravel().round(2)
    array([-1.34, -0.45,  0.45,  1.34], dtype=float32)
    >>> norm.buffers["running_mean"], norm.buffers["running_var"].round(3)
    (array([0.4], dtype=float32), array([1.567], dtype=float32))
    """

    _rowwise = True

    def __init__(
        self, size: int, eps: float = 1e-5, momentum: float | None = 0.1, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        self.input_size: int = positive_int("size", size)
        self.output_size: int = self.input_size
        self.eps: float = check_eps(eps)
        self.momentum: float | None = None if momentum is None else number("momentum", momentum, 0, 1)
        config = {"size": self.input_size, "eps": self.eps, "momentum": self.momentum}
        shape = (self.input_size,)
        self._set_up(config, {"weight": shape, "bias": shape}, dtype, seed)
        self.parameters["weight"][...] = 1
        claim([shape, shape, ()])
        self._buffers: dict[str, Array] = {
            "running_mean": np.zeros(shape, self.dtype),
            "running_var": np.ones(shape, self.dtype),
            "num_batches_tracked": np.zeros((), np.int64),
        }

    @property
    def buffers(self) -> dict[str, Array]:
        """The running statistics. Writing into an array changes the layer."""
        return self._buffers

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_buffers": writable(state["_buffers"])})

    def _cast(self, dtype: np.dtype[Any]) -> None:
        super()._cast(dtype)
        for name in ("running_mean", "running_var"):
            self._buffers[name] = self._buffers[name].astype(dtype)

    def __call__(self, x: Any, lengths: Any = None) -> Array:
        """Return the output (..., size) for `x` (..., size), with the running statistics; nothing is saved."""
        return self._normalise(*self._checked(x, lengths), batch=False)[0]

    @streamed
    def forward(self, x: Any, lengths: Any = None, *, training: bool = True) -> BatchNormTape:
        """Compute the output and save the values that `BatchNormTape.backward` needs.

        Parameters
        ----------
        x : (..., size) array
            Of the layer's dtype, with any leading axes: statistics are over all of them. The tape keeps a reference.
        lengths : (B,) integers, optional
            Each sequence's own length, for x (T, B, size). Padding is ignored, whatever it holds; the output and the
            gradient are zero there.
        training : bool
            True: use the statistics of x, and update the running ones. False: use the running ones, unchanged.

        Returns
        -------
        BatchNormTape
            With ``output`` (..., size).

        Raises
        ------
        TypeError
            If `x` is not an array of the layer's dtype.
        ValueError
            If the last axis of `x` has another size, or in training `x` has only one row, which has no variance.
        """
        training = flag("training", training)
        output, saved = self._normalise(*self._checked(x, lengths), batch=training, update=training)
        return BatchNormTape(output, saved)

    def _checked(self, x: Any, lengths: Any) -> tuple[Array, Array | None]:
        """`x`, and a mask of the steps that are not padding."""
        self._check_parameters()
        x = as_array("x", x)
        check_features(self, x)
        return x, None if lengths is None else valid_steps(x, lengths)

    def _normalise_stream(self, stream: PendingSum, run: Pass, *, keep_sum: bool) -> tuple[Array, Any]:
        x, batch = stream.materialise(), run.batch_statistics
        return self._normalise(x, run.valid, batch=batch, update=run.training)

    @staticmethod
    def _stream_backward(d_sum: Array | None, d: Array, saved: Any) -> tuple[StreamGradient, dict[str, Array]]:
        d_x, parameters = saved.backward(d)
        return StreamGradient(d_x if d_sum is None else d_sum + d_x), parameters

    @staticmethod
    def _scaled_stream_backward(d: Scaled, saved: Any) -> Scaled:
        return superposed(lambda part: saved.backward(part)[0], d, axis=None)

    def _tape(self, output: Array, saved: Any) -> BatchNormTape:
        return BatchNormTape(output, saved)

    @with_room
    @_as_numbers_are
    def _normalise(self, x: Array, valid: Array | None, *, batch: bool, update: bool = False) -> tuple[Array, Saved]:
        """The output, with the statistics of the batch or the running ones; `update` updates the latter."""
        rows = contiguous(x.reshape(-1, x.shape[-1]))
        if valid is not None:
            valid = valid.reshape(-1)
            rows = rows[valid]
        if batch and len(rows) == 1:
            raise ValueError(
                f"x has one row (x.shape == {x.shape}), which has no variance; BatchNorm needs two or more, "
                "or training=False, which takes the running statistics"
            )
        if batch and len(rows):
            statistics = _of_rows(rows, self.eps)
        else:
            statistics, update = self._running(), False
        weight, bias = (self.parameters[name].astype(np.float64) for name in ("weight", "bias"))
        saved = Saved(rows, x.shape, valid, statistics, weight, batch)
        output, factor = saved.new(), weight * statistics.inverse
        offset = bias - statistics.mean * factor
        for part in _parts(rows):
            y = statistics.shifted(rows[part])
            y *= factor
            y += offset
            output[part] = y
        placed = saved.placed(output)
        if update:  # last, when nothing can fail any more
            self._update(statistics, len(rows))
        return placed, saved

    def _running(self) -> Statistics:
        mean, variance = (self._buffers[name].astype(np.float64) for name in ("running_mean", "running_var"))
        return Statistics(np.ones_like(mean), mean, np.zeros_like(mean), variance, 1 / np.sqrt(variance + self.eps))

    def _update(self, found: Statistics, rows: int) -> None:
        self._buffers["num_batches_tracked"] += 1
        share = 1 / int(self._buffers["num_batches_tracked"]) if self.momentum is None else self.momentum
        variance = found.variance * (rows / (rows - 1)) / found.unit / found.unit
        news = {"running_mean": (found.origin + found.mean) / found.unit, "running_var": variance}
        for name, new in news.items():
            running = self._buffers[name]
            running[...] = (1 - share) * running.astype(np.float64) + share * new


class Statistics(NamedTuple):
    """Of each feature, float64: ``x^ = (x unit - origin - mean) inverse``; differences of near numbers are exact.

    `unit` is a power of two that keeps squares in range, `origin` the first row times `unit`, `mean` the mean of
    x unit - origin, `variance` the variance of x unit, `inverse` the reciprocal deviation of x unit. `origin` is one of
    the N rows, so it is at most sqrt(N) deviations away from the mean, and `mean` may also be subtracted after a
    product.
    """

    unit: Array
    origin: Array
    mean: Array
    variance: Array
    inverse: Array

    def shifted(self, rows: Array) -> Array:
        """x unit - origin."""
        shifted = rows.astype(np.float64)
        if (self.unit != 1).any():
            shifted *= self.unit
        shifted -= self.origin
        return shifted


def _of_rows(rows: Array, eps: float) -> Statistics:
    """The statistics of rows (N, F), N > 0."""
    found = _in_units(rows, eps, np.ones(rows.shape[1]))
    if rows.dtype == np.float64 and not np.isfinite(found.variance).all():
        found = _in_units(rows, eps, _unit(rows))
    return found


def _in_units(rows: Array, eps: float, unit: Array) -> Statistics:
    """Mean and sum of squares block by block, combined as in Chan, Golub and LeVeque (1979)."""
    mean, squares, count = np.zeros_like(unit), np.zeros_like(unit), 0
    found = Statistics(unit, rows[0] * unit, mean, squares, unit)
    for part in _parts(rows):
        block = found.shifted(rows[part])
        own = block.sum(axis=0) / len(block)
        block -= own
        block *= block
        total = count + len(block)
        change = own - mean
        mean = mean + change * (len(block) / total)
        squares = squares + block.sum(axis=0) + change * change * (count * len(block) / total)
        count = total
    variance = squares / count
    return found._replace(mean=mean, variance=variance, inverse=1 / np.sqrt(variance + eps * unit * unit))


def _unit(rows: Array) -> Array:
    """1 for each feature, or a smaller power of two if its squares would leave the range of float64."""
    unit = np.ones(rows.shape[1])
    largest = np.maximum(rows.max(axis=0), -rows.min(axis=0))
    large = np.isfinite(largest) & (largest > 2.0**400)
    unit[large] = np.ldexp(1.0, 1 - np.frexp(largest[large])[1])
    return unit


def _parts(rows: Array) -> Iterator[slice]:
    step = max(1, _BLOCK // rows.shape[1])
    return (slice(start, start + step) for start in range(0, len(rows), step))


class Saved:
    """Saved for the backward: the rows without padding, their statistics, and a copy of the weight."""

    def __init__(
        self,
        rows: Array,
        shape: tuple[int, ...],
        valid: Array | None,
        statistics: Statistics,
        weight: Array,
        batch: bool,
    ) -> None:
        self.rows, self.shape, self.valid = rows, shape, valid
        self.statistics, self.weight = statistics, weight
        self.batch = batch  # whether the statistics are those of the rows

    @property
    def nbytes(self) -> int:
        """Bytes held in addition to x."""
        own = [*self.statistics, self.weight, *([] if self.valid is None else [self.valid, self.rows])]
        return sum(array.nbytes for array in own)

    def new(self) -> Array:
        """An uninitialised array like `rows`."""
        return _core.empty(self.rows.shape, self.rows.dtype)

    def placed(self, rows: Array) -> Array:
        """Rows in the shape of x, with zeros in the padding."""
        if self.valid is None:
            return rows.reshape(self.shape)
        whole = np.zeros((len(self.valid), rows.shape[1]), rows.dtype)
        whole[self.valid] = rows
        return whole.reshape(self.shape)

    @with_room
    @_as_numbers_are
    def backward(self, d_output: Array) -> tuple[Array, dict[str, Array]]:
        """The gradients of x and of the parameters.

        With g = weight dy and the statistics of the rows, dx = (g - <g> - x^ <g x^>) / deviation, <> the mean over
        rows; with running ones, dx = g / deviation.
        """
        d_rows = contiguous(d_output.reshape(-1, self.rows.shape[1]))
        if self.valid is not None:
            d_rows = d_rows[self.valid]
        found, count = self.statistics, max(1, len(self.rows))
        d_sum, product_sum = np.zeros_like(self.weight), np.zeros_like(self.weight)  # of d, and of d (x unit - origin)
        for part in _parts(self.rows):
            d, product = d_rows[part].astype(np.float64), found.shifted(self.rows[part])
            product *= d
            d_sum += d.sum(axis=0)
            product_sum += product.sum(axis=0)
        d_weight = (product_sum - found.mean * d_sum) * found.inverse
        factor = self.weight * found.inverse * found.unit
        of_x = -factor * found.inverse * d_weight / count
        offset = -factor * d_sum / count - of_x * found.mean
        d_x = self.new()
        for part in _parts(self.rows):
            d = d_rows[part].astype(np.float64)
            d *= factor
            if self.batch:
                through_statistics = found.shifted(self.rows[part])
                through_statistics *= of_x
                d += through_statistics
                d += offset
            d_x[part] = d
        dtype = self.rows.dtype
        return self.placed(d_x), {"weight": d_weight.astype(dtype), "bias": d_sum.astype(dtype)}


class BatchNormTape(NormTape):
    """One forward pass of `BatchNorm`: ``output``, the input, the statistics and a copy of the weight."""

    _norm = BatchNorm

    def _scaled_backward(self, layer: object, d: Scaled, way: Way) -> tuple[None, Scaled]:
        return None, BatchNorm._scaled_stream_backward(d, self._saved)
