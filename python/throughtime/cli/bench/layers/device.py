"""The devices on which layers run, and their clocks."""

from __future__ import annotations

import importlib
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import throughtime as tt

from ...errors import fail
from ..machine import versions
from .dtypes import Numbers
from .problems import BACKWARD, FORWARD, STEP

REST = 0.02  # seconds; idle OpenMP threads of the previous contender spin for milliseconds and hold a core
WARM = 0.005  # seconds of untimed steps, which wake the contender's own threads and refill the caches
FILL = 0.05  # seconds of timed steps
GPU_FILL = 0.03  # seconds of work between two events
GPU_MOST = 200  # most runs between them

Work = Callable[[], object]


class Device(ABC):
    """A place for arrays, and its clock."""

    place: ClassVar[str]  # torch's name

    @abstractmethod
    def turn(self, layer: Any, timed: str) -> float:
        """Seconds of one pass of an implementation, over a few runs after untimed ones."""

    def apply(self, numbers: Numbers) -> None:
        """Set the precision of products in this process."""
        tt.set_matmul_precision(numbers.precision)

    def synchronize(self) -> None:  # noqa: B027 (the CPU has nothing pending)
        """Wait for the device."""


class Cpu(Device):
    """The processor, in wall time."""

    place = "cpu"

    def turn(self, layer: Any, timed: str) -> float:
        """The median run of `turn`."""
        return turn(lambda: backward_seconds(layer) if timed == BACKWARD else seconds(layer.step))


def turn(measure: Callable[[], float]) -> float:
    """The median of runs that together take FILL seconds, at least one, after a rest and untimed runs."""
    time.sleep(REST)
    spent = 0.0
    while spent < WARM:
        spent += measure()
    times: list[float] = []
    while sum(times) < FILL:
        times.append(measure())
    return statistics.median(times)


def seconds(work: Work) -> float:
    """Wall time."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def backward_seconds(layer: Any) -> float:
    """Wall time of the backward, after an untimed forward."""
    layer.forward()
    return seconds(layer.backward)


class Cuda(Device):
    """The current GPU, between events in the current stream."""

    place = "cuda"
    matrix = 8192  # sizes at which the chip's ceilings are measured: of matrices, and in bytes read and written
    copied = 1 << 30

    def turn(self, layer: Any, timed: str) -> float:
        """The mean of consecutive runs that together take GPU_FILL seconds, after an untimed one."""
        if timed == BACKWARD:
            layer.forward()
        return self._turn(getattr(layer, {FORWARD: "inference", STEP: "step", BACKWARD: "backward"}[timed]))

    def apply(self, numbers: Numbers) -> None:
        """Set our precision; torch multiplies in TF32 unless it is `highest`."""
        super().apply(numbers)
        torch: Any = importlib.import_module("torch")
        for library in (torch.backends.cudnn, torch.backends.cuda.matmul):
            library.allow_tf32 = numbers.precision != "highest"

    def synchronize(self) -> None:
        """Wait for the device."""
        importlib.import_module("torch").cuda.synchronize()

    def clock(self, work: Work, repeats: int) -> float:
        """Seconds of consecutive runs, on the device's own clock."""
        torch: Any = importlib.import_module("torch")
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def describe(self) -> dict[str, Any]:
        """The device's properties, and the ceilings of the chip."""
        torch: Any = importlib.import_module("torch")
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "ceilings": self.ceilings(),
        }

    def ceilings(self) -> dict[str, float]:
        """Rates on large operands: bfloat16 products by torch.matmul, bytes read and written by a copy."""
        torch: Any = importlib.import_module("torch")
        a, b = (torch.randn(self.matrix, self.matrix, device=self.place).bfloat16() for _ in range(2))
        product = torch.empty_like(a)
        source = torch.zeros(self.copied, dtype=torch.uint8, device=self.place)
        target = torch.empty_like(source)

        def best(work: Work) -> float:
            return statistics.median(self._turn(work) for _ in range(5))

        return {
            "bfloat16_flops": 2.0 * self.matrix**3 / best(lambda: torch.matmul(a, b, out=product)),
            "copy_bytes_per_second": 2.0 * self.copied / best(lambda: target.copy_(source)),
        }

    @staticmethod
    def versions() -> dict[str, str]:
        """Versions of the libraries that drive the device."""
        torch: Any = importlib.import_module("torch")
        return versions(["torch"]) | {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}

    def _turn(self, work: Work) -> float:
        first = self.clock(work, 1)
        repeats = max(1, min(GPU_MOST, int(GPU_FILL / max(first, 1e-9))))
        return self.clock(work, repeats) / repeats


def open_device() -> Cuda:
    """The current GPU; if there is none, the command ends with a line that names the missing part."""
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
    return Cuda()
