"""The programs in one process: a block of steps per request."""

from __future__ import annotations

import time

import throughtime as tt

from ..process import added_memory
from .answers import Answers, first_step, next_steps
from .contenders import load, load_reference
from .problems import Problem, Task
from .program import Program

WARM = 2  # untimed steps before a block
STEPS = 5  # timed steps of a block
# Seconds before a block. Idle threads of the previous contender still hold a core: OpenMP's spin for milliseconds,
# OpenBLAS's for 2^26 cycles.
REST = 0.05
_LIVE = 3  # steps until all memory is allocated


class Host:
    """The programs of this process, of one task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._programs: dict[str, Program] = {}

    def reference(self) -> Answers:
        """The answers of torch.nn in float64."""
        program = load_reference()(self._task)
        return next_steps(program, first_step(program))

    def answers(self, name: str) -> tuple[Answers, float]:
        """Start a program and keep it for `block`; return its answers and the seconds of its first step."""
        program = load(name)(self._task)
        begin = time.perf_counter()
        answers = first_step(program)
        seconds = time.perf_counter() - begin
        self._programs[name] = program
        return next_steps(program, answers), seconds

    def block(self, name: str) -> float:
        """Run a block after its warm-up; return the seconds per step."""
        program = self._programs[name]
        time.sleep(REST)
        for _ in range(WARM):
            program.step()
        begin = time.perf_counter()
        for _ in range(STEPS):
            program.step()
        return (time.perf_counter() - begin) / STEPS

    def memory(self, name: str) -> int | None:
        """Peak bytes of a program, its data and a few steps; None if the system does not report them."""
        make = load(name)
        problem = self._task.problem
        small = problem._replace(T=2, B=2, H=8, shortest=None if problem.shortest is None else 1)
        make(Task(small, self._task.cell)).step()  # so that starting the libraries does not count

        def live() -> None:
            program = make(self._task)
            for _ in range(_LIVE):
                program.step()

        return added_memory(live)


def start(problem: Problem, cell: str, threads: int, kind: str) -> Host:
    """In a new process: set the threads, then wait for requests."""
    tt.set_num_threads(threads)
    if kind == "torch":
        import torch

        torch.set_num_threads(threads)
    return Host(Task(problem, cell))
