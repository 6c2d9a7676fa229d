"""The machine measured: processor, instruction set, peak rate, load, versions."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import throughtime as tt
from throughtime import _core

MOST_LOAD = 0.3
MOST_SPREAD = 0.1
_LOOPS = 50
# Prefixes of environment variables that change speed; those that are set are reported.
_TUNING = (
    *("ATEN_", "DNNL_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_"),
    *("THROUGHTIME_", "TORCH"),
)


def describe() -> dict[str, Any]:
    """Processor, peak float32 rate of the threads in use, and how busy the machine is before the measurements."""
    before = load()  # before this command does any work
    config = tt.show_config("dicts") or {}
    spread = calibration_spread()
    return {
        "cpu": cpu_model(),
        "cores": config["cores usable"],
        "instruction_set": config["instruction set in use"],
        "peak_float32_flops": peak(),
        "load_before": before,
        "calibration_spread": spread,
        "busy": busy_reasons(before, spread),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_TUNING)},
    }


def describe_after(machine: dict[str, Any]) -> None:
    """Add the load after the measurements, and measure the peak rate again: other programs may have disturbed it."""
    machine["load_after"] = load()
    machine["peak_float32_flops"] = max(machine["peak_float32_flops"], peak())


def peak() -> float:
    """The peak rate of multiply-adds in registers on the threads in use, in float32 operations per second."""
    return _core.peak(0.5)


def load() -> float:
    """The average number of runnable processes over the last minute."""
    return os.getloadavg()[0]


def calibration_spread() -> float:
    """The spread of a loop of multiply-adds: the time of the slowest tenth over the fastest, minus one.

    The loop takes a few milliseconds on all threads, and each run ends with the slowest.
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


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of this library and NumPy, and of these packages."""
    found = {"python": platform.python_version(), "throughtime": tt.__version__}
    for name in ("numpy", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
