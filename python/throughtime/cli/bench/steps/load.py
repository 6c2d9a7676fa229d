"""The load of the machine, the spread of a calibration loop, and busy processes for `--beside`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from throughtime import _core

MOST_LOAD = 0.3
MOST_SPREAD = 0.1
_LOOPS = 50
_BOUND = 900  # seconds after which a busy process ends by itself
_BUSY_LOOP = f"import time\nprint(flush=True)\nend = time.monotonic() + {_BOUND}\nwhile time.monotonic() < end: pass"


def load() -> float:
    """Return the average number of runnable processes over the last minute."""
    return os.getloadavg()[0]


def calibration_spread() -> float:
    """Return the spread of a loop of multiply-adds: the time of the slowest tenth over the fastest, less one.

    The loop takes some milliseconds on all threads, which wait for the slowest.
    """
    rates = [_core.peak(0) for _ in range(_LOOPS)]
    tenths = statistics.quantiles(rates, n=10)
    return tenths[-1] / tenths[0] - 1


def busy_reasons(load_before: float, spread: float) -> list[str]:
    """Signs that other programs disturb the times; empty on a quiet machine."""
    reasons = []
    if load_before > MOST_LOAD:
        reasons.append(f"load {load_before:.2f} at the start")
    if spread > MOST_SPREAD:
        reasons.append(f"a calibration loop spreads by {spread:.0%}")
    return reasons


class BusyProcessEnded(Exception):
    """A busy process ended before the round that it should disturb."""


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that each keep a core busy."""
    command = [sys.executable, "-S", "-c", _BUSY_LOOP]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        yield
        if any(process.poll() is not None for process in started):
            raise BusyProcessEnded(f"a busy process ended before its round, which took more than {_BOUND} s")
    finally:
        for process in started:
            process.kill()
            process.communicate()
