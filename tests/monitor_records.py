"""Records of a monitor with known numbers, and monitors that hold them."""

from __future__ import annotations

import numpy as np

import throughtime as tt
from throughtime.monitor.flow_record import FlowRecord


def record_of(step, *rows, lags=(0, 1, 2, 5, 9), layer="LSTM", gamma=None, horizon=None, fault=None):
    """Rows of logarithms by lag."""
    count = len(rows)
    return FlowRecord(
        step=step,
        layer=layer,
        rows=tuple(f"layer {row}" for row in range(count)),
        steps=int(lags[-1]) + 1 if lags else 0,
        lags=np.array(lags, np.int64),
        log10_norm=np.array(rows, np.float64).reshape(count, len(lags)),
        gamma=np.array(gamma or [0.5] * count),
        horizon=np.array(horizon or [3.0] * count),
        zero_share=np.full(count, np.nan),
        cancellation={"weight_hh_l0": 0.25},
        clipped_share=None,
        clipped_steps=None,
        not_finite=None if fault is None else 0,
        fault=fault,
    )


def monitor_of(*records, losses=(), range="full"):
    monitor = tt.FlowMonitor(tt.LSTM(1, 1), range=range)
    monitor.close()
    monitor.history.extend(records)
    monitor.losses.extend(losses)
    return monitor


def falling(count, slope=-1.0, lags=(0, 1, 2, 5, 9)):
    return [[slope * lag for lag in lags] for _ in range(count)]
