"""The process that runs contenders: a block of steps per request; between requests it waits on a pipe.

Messages are pickles, one after the other: requests on the standard input, replies on what was the standard output.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from typing import Any

import throughtime as tt

from ..memory import added_memory
from .answers import Answers, first_step, next_steps
from .contenders import Program, load, load_reference
from .problems import Problem, Task

WARM = 2  # untimed steps before a block
STEPS = 5  # of a block
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
        """Torch.nn's answers in float64."""
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
        """Bytes that a program with its data and a few steps takes; None where the system does not tell."""
        make = load(name)
        problem = self._task.problem
        small = problem._replace(T=2, B=2, H=8, shortest=None if problem.shortest is None else 1)
        make(Task(small, self._task.cell)).step()  # so that starting the libraries does not count

        def live() -> None:
            program = make(self._task)
            for _ in range(_LIVE):
                program.step()

        return added_memory(live)


def serve() -> None:
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print into a reply
    problem, cell, threads, kind = pickle.load(sys.stdin.buffer)
    _set_threads(threads, kind)
    host = Host(Task(Problem(*problem), cell))
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_reply(getattr(host, method), arguments), replies)
        replies.flush()


def _set_threads(threads: int, kind: str) -> None:
    tt.set_num_threads(threads)
    if kind == "torch":
        import torch

        torch.set_num_threads(threads)


def _reply(method: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """True and what the method returned, or False and why it did not."""
    try:
        return True, method(*arguments)
    except Exception as error:  # a framework or its compiler may raise anything
        lines = str(error).strip().splitlines() or [""]
        return False, f"{type(error).__name__}: {lines[0]}"
