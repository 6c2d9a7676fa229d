"""A sink that collects scalars until a callback hands them to its framework's logger."""

from __future__ import annotations

from ..monitor.flow_record import FlowRecord


class Collector:
    """The scalars of all records since they were last taken."""

    def __init__(self) -> None:
        self._scalars: dict[str, float] = {}

    def __call__(self, record: FlowRecord) -> None:
        """Add those of a record."""
        self._scalars |= record.scalars()

    def take(self) -> dict[str, float]:
        """Return them and forget them."""
        taken, self._scalars = self._scalars, {}
        return taken
