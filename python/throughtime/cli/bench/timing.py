"""Times of contenders in turn: A B A B ..."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping

from .contenders import Contender

REST = 0.02  # seconds; idle OpenMP threads of the contender before spin for milliseconds and hold a core
WARM = 0.005  # seconds of untimed steps, which wake the own threads and refill the caches
FILL = 0.05  # seconds of timed steps

Clock = Callable[[Contender], float]


def step_seconds(contender: Contender) -> float:
    """Of a training step."""
    begin = time.perf_counter()
    contender.step()
    return time.perf_counter() - begin


def backward_seconds(contender: Contender) -> float:
    """Of the backward alone, after an untimed forward."""
    contender.forward()
    begin = time.perf_counter()
    contender.backward()
    return time.perf_counter() - begin


def turn(measure: Callable[[], float]) -> float:
    """The median of as many steps as fill a while, at least one, after a rest and at least one that does not count."""
    time.sleep(REST)
    spent = 0.0
    while spent < WARM:
        spent += measure()
    times: list[float] = []
    while sum(times) < FILL:
        times.append(measure())
    return statistics.median(times)


def interleave(
    contenders: Mapping[str, Contender], clock: Clock, rounds: int, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds per round of every contender; `tick` is called after each round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(turn(functools.partial(clock, contender)))
        tick()
    return times


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Their time in ours, round by round."""
    return [a / b for a, b in zip(theirs, ours, strict=True)]
