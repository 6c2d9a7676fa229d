"""On what was measured: processor, instruction set, peak, versions."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import throughtime as tt
from throughtime import _core


def machine() -> dict[str, Any]:
    """Processor, cores, instruction set, and the float32 peak of the threads in use, measured now."""
    config = tt.show_config("dicts") or {}
    return {
        "cpu": _cpu_model(),
        "cores": config["cores usable"],
        "instruction_set": config["instruction set in use"],
        "peak_float32_flops": machine_peak(),
    }


def machine_peak() -> float:
    """Float32 operations per second that multiply-adds in registers reach on the threads in use."""
    return _core.peak(0.5)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python, of this library and NumPy, and of these packages."""
    found = {"python": platform.python_version(), "throughtime": tt.__version__}
    for name in ("numpy", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
