"""Observers of backward passes: they see a layer's gradients at every timestep, and change none of its results."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from .backward import Asked, Gradients, Loss, run_backward
from .record import Record


class Observer(Protocol):
    """What sees the backward passes of one layer."""

    def wanted(self) -> Set[str] | None:
        """Called before each backward: the gradients of timesteps to compute for this observer; None to skip it."""

    def take(self, record: Record, loss: Loss, grads: Gradients) -> None:
        """Called after that backward, unless it was skipped. The arrays belong to the caller of the backward."""


_registered: dict[int, list[Observer]] = {}
_lock = threading.Lock()


def observers_of(key: int) -> list[Observer]:
    """The observers of the layer with this key: the id of a layer, or the address of a torch module's first weight."""
    return _registered.get(key, []) if _registered else []


@contextmanager
def observing(key: int, observer: Observer) -> Iterator[None]:
    """Register an observer while the context lasts."""
    with _lock:
        _registered[key] = [*observers_of(key), observer]
    try:
        yield
    finally:
        with _lock:
            rest = [other for other in observers_of(key) if other is not observer]
            if rest:
                _registered[key] = rest
            else:
                _registered.pop(key, None)


def observed_backward(key: int, record: Record, loss: Loss, asked: Asked) -> Gradients:
    """`run_backward`, seen by the observers of the layer with this key."""
    observers = observers_of(key)
    if not observers:
        return run_backward(record, loss, asked)
    wanted = [(observer, names) for observer in observers if (names := observer.wanted()) is not None]
    timesteps = frozenset(asked.timesteps).union(*(names for _, names in wanted))
    grads = run_backward(record, loss, replace(asked, timesteps=timesteps))
    for observer, _ in wanted:
        observer.take(record, loss, grads)
    return grads.without(timesteps - asked.timesteps)
