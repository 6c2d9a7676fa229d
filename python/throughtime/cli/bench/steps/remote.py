"""The parent's side of the workers: starts them, sends requests, ends them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from . import worker
from .answers import Answers
from .contenders import PROCESSES
from .problems import Task


class WorkerError(Exception):
    """Why a contender or its process failed."""


class Worker:
    """A process with the methods of its `Host`."""

    def __init__(self, task: Task, kind: str, threads: int, cache: Path) -> None:
        # NumPy's BLAS takes its threads from the environment alone. torch's compiler starts with an empty cache.
        more = {"OPENBLAS_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {worker.__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | more,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes this
        )
        self._send((tuple(task.problem), task.cell, threads, kind))

    def reference(self) -> Answers:
        found: Answers = self._ask("reference")
        return found

    def answers(self, name: str) -> tuple[Answers, float]:
        found: tuple[Answers, float] = self._ask("answers", name)
        return found

    def block(self, name: str) -> float:
        found: float = self._ask("block", name)
        return found

    def memory(self, name: str) -> int | None:
        found: int | None = self._ask("memory", name)
        return found

    def close(self) -> None:
        """End the process, and those that a compiler in it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._said.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._send((method, arguments))
        assert self._process.stdout is not None
        try:
            done, result = pickle.load(self._process.stdout)
        except EOFError:
            raise WorkerError(self._last_words()) from None
        if not done:
            raise WorkerError(result)
        return result

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, and so has its output, from which the next reply is read

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f"its process ended: exit code {code}{', ' + lines[-1] if lines else ''}"


@contextmanager
def workers(
    task: Task, names: Sequence[str], threads: Sequence[int], cache: Path
) -> Iterator[dict[tuple[str, int], Worker]]:
    """The worker of each contender with each number of threads; those of one kind of process share it."""
    with ExitStack() as stack:
        started: dict[tuple[str, int], Worker] = {}
        for count in threads:
            for kind in dict.fromkeys(PROCESSES[name] for name in names):
                started[kind, count] = Worker(task, kind, count, cache)
                stack.callback(started[kind, count].close)
        yield {(name, count): started[PROCESSES[name], count] for name in names for count in threads}
