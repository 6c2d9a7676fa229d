"""The device: how time is taken on it, and the ceilings of the chip, measured."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import throughtime as tt

from ...errors import fail

FILL = 0.03  # seconds of work between two looks at the clock
MOST = 200  # runs between them

Run = Callable[[], object]
Clock = Callable[[Run, int], float]  # seconds that so many runs in a row take


@dataclass(frozen=True)
class Device:
    """Where tensors lie, by torch's name, the clock of that place, and the sizes at which its ceilings are measured."""

    place: str
    clock: Clock
    matrix: int = 8192
    copied: int = 1 << 30  # bytes read, and as many written


def open_device() -> Device:
    """The current GPU; where something is missing, the command ends with a line that says what."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        fail("--device cuda: torch, which holds the tensors, is not installed: pip install torch")
    try:
        cuda = importlib.import_module("throughtime._cuda")
    except ImportError:
        fail("--device cuda: throughtime was built without CUDA: pip install . -Ccmake.define.THROUGHTIME_CUDA=ON")
    if not torch.cuda.is_available():
        fail(f"--device cuda: torch {torch.__version__} finds no CUDA device")
    if not cuda.device_count():
        fail("--device cuda: throughtime finds no CUDA device")
    return Device("cuda", event_seconds)


def event_seconds(run: Run, repeats: int) -> float:
    """On the device's own clock, between two events in the current stream."""
    torch: Any = importlib.import_module("torch")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def turn(clock: Clock, run: Run) -> float:
    """Seconds of one run, the mean of as many in a row as fill a while, after one that does not count."""
    first = clock(run, 1)
    repeats = max(1, min(MOST, int(FILL / max(first, 1e-9))))
    return clock(run, repeats) / repeats


def ceilings(device: Device) -> dict[str, float]:
    """What the chip reaches on large operands: bfloat16 products by torch.matmul, bytes read and written by a copy."""
    torch: Any = importlib.import_module("torch")
    a, b = (torch.randn(device.matrix, device.matrix, device=device.place).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    source = torch.zeros(device.copied, dtype=torch.uint8, device=device.place)
    target = torch.empty_like(source)

    def best(run: Run) -> float:
        return statistics.median(turn(device.clock, run) for _ in range(5))

    return {
        "bfloat16_flops": 2.0 * device.matrix**3 / best(lambda: torch.matmul(a, b, out=product)),
        "copy_bytes_per_second": 2.0 * device.copied / best(lambda: target.copy_(source)),
    }


def describe(device: Device) -> dict[str, Any]:
    """The device by its properties, and the versions of what drives it."""
    torch: Any = importlib.import_module("torch")
    about: dict[str, Any] = {"name": "CPU", "torch": torch.__version__, "throughtime": tt.__version__}
    if device.place == "cuda":
        of = torch.cuda.get_device_properties(0)
        about |= {
            "name": of.name,
            "capability": f"{of.major}.{of.minor}",
            "multiprocessors": of.multi_processor_count,
            "memory_bytes": of.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about
