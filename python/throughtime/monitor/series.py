"""The records of a monitor by layer and direction: what its figures, page and terminal line show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .._arguments import Array
from .flow_record import FlowRecord


class Monitor(Protocol):
    """The attributes of a monitor that figures and page read."""

    history: list[FlowRecord]
    losses: list[float]
    range: str


@dataclass(frozen=True)
class Series:
    """The records of one layer and direction, in the order of their steps."""

    place: str
    records: Sequence[FlowRecord]
    row: int

    @property
    def steps(self) -> Array:
        """Backward passes before each record."""
        return np.array([record.step for record in self.records])

    @property
    def gamma(self) -> Array:
        """Of each record."""
        return np.array([record.gamma[self.row] for record in self.records])

    @property
    def horizon(self) -> Array:
        """Of each record, in steps."""
        return np.array([record.horizon[self.row] for record in self.records])

    def by_lag(self) -> tuple[list[str], Array, Array]:
        """The names of the lags; by lag and record log10 of the norm, and whether the record has this lag.

        If the sequences differ in length, each record's last lag is in a common last row as well.
        """
        lasts = {int(record.lags[-1]) for record in self.records if record.lags.size}
        common = len(lasts) < 2
        lags = sorted({int(lag) for record in self.records for lag in (record.lags if common else record.lags[:-1])})
        names = [str(lag) for lag in lags] + ([] if common else [f"last: {min(lasts)} to {max(lasts)}"])
        values = np.full((len(names), len(self.records)), -np.inf)
        exists = np.zeros(values.shape, np.bool_)
        place = {lag: i for i, lag in enumerate(lags)}
        for column, record in enumerate(self.records):
            for lag, norm in zip(record.lags.tolist(), record.log10_norm[self.row], strict=True):
                rows = [place[lag]] if lag in place else []
                rows += [] if common or lag != record.lags[-1] else [len(names) - 1]
                values[rows, column], exists[rows, column] = norm, True
        return names, values, exists


def series_of(history: Sequence[FlowRecord], layer: str | None = None) -> list[Series]:
    """A series for every layer and direction, or for those of one layer, or for one ``layer/row``.

    Raises
    ------
    ValueError
        If there is no record, or none of this layer.
    """
    if not history:
        raise ValueError("the history is empty: no watched layer has run a backward pass")
    by_layer: dict[str, list[FlowRecord]] = {}
    for record in history:
        by_layer.setdefault(record.layer, []).append(record)
    found = [
        (name, Series(records[0].place(row), sorted(records, key=lambda record: record.step), row))
        for name, records in by_layer.items()
        for row in range(len(records[0].rows))
    ]
    chosen = [series for name, series in found if layer is None or layer in (name, series.place)]
    if not chosen:
        raise ValueError(f"layer must be one of {', '.join(map(repr, by_layer))}, got {layer!r}")
    return chosen
