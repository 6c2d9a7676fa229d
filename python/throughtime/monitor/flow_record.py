"""The findings of a monitor on one backward pass of one recurrent layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .._arguments import Array
from .._scaled import log10_norm, scaled
from ..analysis.flow_result import GradientFlow
from ..analysis.gradient_flow import flow_of_record, row_names
from ..recurrent.backward import Gradients
from ..recurrent.faults import first_broken, forward_fault
from ..recurrent.record import Record

ZERO_LAG = 100  # steps back from the end at which units without a gradient are counted
FRACTION = 1e-3  # of the horizon


@dataclass(frozen=True, eq=False)
class FlowRecord:
    """The gradient flow of one recurrent layer in one backward pass. A row is a layer and direction, as in ``h_n``.

    Attributes
    ----------
    step : int
        The number of backward passes of this layer before this one.
    layer : str
        The layer's place in the model, such as ``"0.sublayer"``; of a layer by itself the name of its class.
    rows : tuple of str
        The names of the rows.
    steps : int
        Timesteps of the longest sequence.
    lags : (n,) int array
        Steps back from each direction's own last step: 0, 1, 2, 5, 10, 20, 50, ... and the last one, ``steps - 1``.
    log10_norm : (rows, n) array
        log10 of the norm of dL/dh at each lag, over batch and units; of the sequences that are long enough.
    gamma, horizon : (rows,) array
        As of :class:`.GradientFlow`: the mean factor per step back, and ``horizon(1e-3)`` in steps; both count from
        each sequence's own end, so that the loss of a short sequence does not look like growth.
    zero_share : (rows,) array
        The share of units whose gradient is exactly zero in the whole batch at lag 100 of the longest sequence; NaN if
        that is shorter.
    cancellation : dict of str to float
        By parameter, the norm of the gradient over the sum of the norms of what each timestep adds to it: 1 if all
        timesteps agree, near 0 if they cancel. Empty if the backward ran elsewhere, as in Keras.
    clipped_share : float or None
        The share of steps whose gradient ``clip`` rescaled; None without ``clip``.
    clipped_steps : (int, int) or None
        The first and the last of these timesteps; None if there are none.
    not_finite : int or None
        The first timestep whose state is not finite; if all states are finite, the latest whose gradient is not.
    fault : str or None
        What is not finite there, in words.
    """

    step: int
    layer: str
    rows: tuple[str, ...]
    steps: int
    lags: Array
    log10_norm: Array
    gamma: Array
    horizon: Array
    zero_share: Array
    cancellation: dict[str, float]
    clipped_share: float | None
    clipped_steps: tuple[int, int] | None
    not_finite: int | None
    fault: str | None

    def place(self, row: int) -> str:
        """The name of a row among those of all layers: ``layer/row``, or the layer's if it has no other row."""
        return f"{self.layer}/{self.rows[row]}" if len(self.rows) > 1 else self.layer

    def as_dict(self) -> dict[str, Any]:
        """The attributes as JSON has them: lists for arrays, and ``"inf"``, ``"-inf"``, ``"nan"`` as strings."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def scalars(self) -> dict[str, float]:
        """Single numbers by name, for charts; those that are not finite are left out.

        Returns
        -------
        dict of str to float
            ``flow_gamma/lstm``, ``flow_horizon/lstm``, ``flow_zero_share/lstm``, ``flow_clipped_share/lstm``,
            ``flow_cancellation/lstm.weight_hh_l0`` and ``flow_log10_norm/lstm/lag_100``. If there are several rows,
            ``lstm`` is followed by ``.l0``, ``.l0_reverse``, ... TensorBoard and Weights & Biases show the names
            before the first slash as sections, so layers stand side by side; all characters are valid in their names.
        """
        found: dict[str, float] = {}
        for i, row in enumerate(self.rows):
            place = f"{self.layer}.{_suffix(row)}" if len(self.rows) > 1 else self.layer
            found[f"flow_gamma/{place}"] = float(self.gamma[i])
            found[f"flow_horizon/{place}"] = float(self.horizon[i])
            found[f"flow_zero_share/{place}"] = float(self.zero_share[i])
            for lag, norm in zip(self.lags, self.log10_norm[i], strict=True):
                found[f"flow_log10_norm/{place}/lag_{lag}"] = float(norm)
        for name, value in self.cancellation.items():
            found[f"flow_cancellation/{self.layer}.{name}"] = value
        if self.clipped_share is not None:
            found[f"flow_clipped_share/{self.layer}"] = self.clipped_share
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def __str__(self) -> str:
        lines = []
        for i, row in enumerate(self.rows):
            norms = [f"{norm:.2f}" for norm in self.log10_norm[i][[0, -1]]] if self.steps else ["nan", "nan"]
            lines.append(
                f"step {self.step}  {self.layer}, {row}: gamma {self.gamma[i]:.4g}, horizon {self.horizon[i]:g} of "
                f"{self.steps} steps, log10 of the norm {' to '.join(norms)}"
            )
        return "\n".join([*lines, *([f"not finite: {self.fault}"] if self.fault else [])])


def make_record(step: int, layer: str, record: Record, grads: Gradients, *, full: bool) -> FlowRecord:
    """Measure one backward pass; with `full`, the flow is that of a loss on the last step, past the range of floats."""
    hidden = None if full else record.backend.on_host("hidden", grads.hidden)
    flow = flow_of_record(record, layer) if hidden is None else _flow_of_hidden(record, hidden, layer)
    zero_share = _zero_share(flow, hidden)
    return _record(step, layer, record, flow, zero_share, _cancellation(record, grads), *_clipped(record, grads))


def record_of_forward(step: int, layer: str, record: Record) -> FlowRecord:
    """Measure a forward pass whose backward is not run here: the flow of a loss on the last step, as with `full`."""
    flow = flow_of_record(record, layer)
    return _record(step, layer, record, flow, _zero_share(flow, None), {}, None, None)


def _record(
    step: int,
    layer: str,
    record: Record,
    flow: GradientFlow,
    zero_share: Array,
    cancellation: dict[str, float],
    clipped_share: float | None,
    clipped_steps: tuple[int, int] | None,
) -> FlowRecord:
    lags = _lags(flow.steps)
    not_finite, fault = _fault(record, flow)
    return FlowRecord(
        step,
        layer,
        flow.names,
        flow.steps,
        lags,
        flow.by_lag[:, lags] if record.sizes[1] else np.full((len(flow.names), len(lags)), np.nan),
        flow.gamma,
        flow.horizon(FRACTION),
        zero_share,
        cancellation,
        clipped_share,
        clipped_steps,
        not_finite,
        fault,
    )


def _flow_of_hidden(record: Record, hidden: Array, title: str) -> GradientFlow:
    return GradientFlow(
        log10_norm(scaled(hidden)),
        reverse=record.architecture.goes_back,
        names=row_names(record.architecture),
        title=title,
        lengths=None if record.lengths is None else record.unbatch(record.lengths, 0),
    )


def _lags(steps: int) -> Array:
    """0, 1, 2, 5, 10, ... and the last one."""
    series = [0, *(digit * 10**power for power in range(len(str(steps))) for digit in (1, 2, 5))]
    return np.array([*(lag for lag in series if lag < steps - 1), *([steps - 1] if steps else [])], np.int64)


def _zero_share(flow: GradientFlow, hidden: Array | None) -> Array:
    """By row, the share of units without any gradient at `ZERO_LAG` of the longest sequence; `hidden` is dL/dh."""
    if flow.steps <= ZERO_LAG:
        return np.full(len(flow.names), np.nan)
    times = np.where(flow.reverse, ZERO_LAG, flow.steps - 1 - ZERO_LAG)
    rows = np.arange(len(times))
    if hidden is None:
        zero = flow.log10_unit[rows, times] == -np.inf
    else:
        zero = hidden[rows, times] == 0
        zero = zero if zero.ndim == 2 else zero.all(axis=1)
    share: Array = zero.mean(axis=1)
    return share


def _cancellation(record: Record, grads: Gradients) -> dict[str, float]:
    found = {}
    for name, norms in grads.parameter_norms.items():
        gradient = record.backend.on_host(name, grads.parameters[name])
        total = float(norms.sum())
        found[name] = 10.0 ** float(log10_norm(scaled(gradient.reshape(1, -1)))[0]) / total if total else math.nan
    return found


def _clipped(record: Record, grads: Gradients) -> tuple[float | None, tuple[int, int] | None]:
    clipped = vars(grads).get("clipped")
    if clipped is None:
        return None, None
    clipped = record.backend.on_host("clipped", clipped).reshape(record.architecture.count, *record.sizes)
    steps = record.sizes[0] * record.sizes[1] if record.lengths is None else int(record.lengths.sum())
    times = np.flatnonzero(clipped.any(axis=(0, 2)))
    share = float(clipped.sum()) / max(1, steps * len(clipped))
    return share, (int(times[0]), int(times[-1])) if times.size else None


def _fault(record: Record, flow: GradientFlow) -> tuple[int | None, str | None]:
    bad = np.isnan(flow.log10_norm) | (flow.log10_norm == np.inf)
    if not bad.any() and flow.fault is None:
        return None, None
    fault = forward_fault(record)
    if fault is None:
        t = int(np.flatnonzero(bad.any(axis=0))[-1])
        return t, f"the gradient at timestep {t}"
    firsts = [first_broken(record, index) for index in range(record.architecture.count)]
    times = [_timestep(int(steps.min()), record, index) for index, steps in enumerate(firsts)]
    known = [t for t in times if t is not None]
    return (min(known) if known else None), fault


def _timestep(step: int, record: Record, index: int) -> int | None:
    """The timestep of a direction's own step; None beyond the last."""
    if step >= record.sizes[0]:
        return None
    return record.sizes[0] - 1 - step if record.architecture.goes_back[index] else step


def _suffix(row: str) -> str:
    """A row in the words of torch's parameters: ``layer 0, reverse`` is ``l0_reverse``."""
    return row.replace("layer ", "l").replace(", ", "_")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
