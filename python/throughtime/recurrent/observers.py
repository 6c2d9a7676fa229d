"""Observers of backward passes: they see a layer's gradients at every timestep, and change none of its results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from .backward import Asked, Gradients, Loss, run_backward
from .record import Record


class Observer(Protocol):
    """Sees the backward passes of one layer."""

    def wanted(self) -> Set[str] | None:
        """Called before each backward: the gradients of timesteps to compute for this observer; None to skip it."""

    def take(self, record: Record, loss: Loss, grads: Gradients) -> None:
        """Called after that backward, unless it was skipped. The arrays belong to the caller of the backward."""


Key = Callable[[], int | None]
"""Returns the present key of the observed layer or module, because torch moves weights; None once it is gone."""

_registered: tuple[tuple[Key, Observer], ...] = ()
_lock = threading.Lock()


def observers_of(key: int) -> list[Observer]:
    """The observers of the layer with this key: the id of a layer, or the address of a torch module's first weight."""
    return [observer for present, observer in _registered if present() == key]


def observe(key: Key, observer: Observer) -> Callable[[], None]:
    """Register an observer. Returns a function that unregisters it. An observer whose layer is gone is dropped."""
    entry = key, observer

    def stop() -> None:
        global _registered
        with _lock:
            _registered = tuple(other for other in _registered if other is not entry)

    global _registered
    with _lock:
        _registered = (*(other for other in _registered if other[0]() is not None), entry)
    return stop


@contextmanager
def observing(key: Key, observer: Observer) -> Iterator[None]:
    """Register an observer while the context lasts."""
    stop = observe(key, observer)
    try:
        yield
    finally:
        stop()


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
