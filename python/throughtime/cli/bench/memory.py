"""Peak memory of one training step, in a fresh process, on Linux. That process runs this file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import throughtime as tt

from .contenders import load
from .problems import Problem, Task

_PROCESS = Path("/proc/self")


def peak_memory(name: str, task: Task, threads: int, precision: str) -> int | None:
    """Bytes that a step of this contender takes above its inputs; None where the system does not tell.

    Raises
    ------
    RuntimeError
        If the process fails, for want of memory for example.
    """
    request = json.dumps([name, task.problem, task.cell, threads, precision])
    command = [sys.executable, "-P", "-m", "throughtime.cli.bench.memory", request]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the process that measures peak memory failed: {last[0]}")
    found: int | None = json.loads(done.stdout)
    return found


def added_memory(work: Callable[[], object]) -> int | None:
    """The peak of this process while it does this work, above what it holds before."""
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the peak starts anew from what there is
    except OSError:
        return None
    before = _bytes("VmRSS")
    work()
    return _bytes("VmHWM") - before


def _bytes(field: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in the status of this process")


def _answer(request: str) -> None:
    name, problem, cell, threads, precision = json.loads(request)
    make = load(name, threads)
    tt.set_matmul_precision(precision)
    make(Task(Problem(2, 2, 8, 8), cell)).step()  # so that starting the library does not count
    print(json.dumps(added_memory(make(Task(Problem(*problem), cell)).step)))


if __name__ == "__main__":
    _answer(sys.argv[1])
