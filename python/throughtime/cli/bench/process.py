"""Processes that run contenders on request; between requests they wait on a pipe.

Messages are consecutive pickles: requests on the standard input, replies on the original standard output.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


class ProcessError(Exception):
    """A contender or its process failed, for the reason in the message."""


class Process:
    """A new process that calls `make(*arguments)` once, then methods of the result on request.

    `make` must be importable by its name.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | dict(environment or {}),
            start_new_session=True,  # Ctrl-C goes to the parent only, which then closes this process
        )
        self._send((make, arguments))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method in the process and return its result.

        Raises
        ------
        ProcessError
            If it raises, or the process ends.
        """
        self._send((method, arguments))
        assert self._process.stdout is not None
        try:
            done, result = pickle.load(self._process.stdout)
        except EOFError:
            raise ProcessError(self._last_words()) from None
        if not done:
            raise ProcessError(result)
        return result

    def close(self) -> None:
        """End the process, and any that a compiler in it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, and so has its output, from which the next reply is read

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended: exit code {code}{', ' + lines[-1] if lines else ''}"


def serve() -> None:
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's prints must not get into a reply
    make, arguments = pickle.load(sys.stdin.buffer)
    served = make(*arguments)
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_reply(getattr(served, method), arguments), replies)
        replies.flush()


def _reply(method: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """True and the result, or False and the reason why there is none."""
    try:
        return True, method(*arguments)
    except Exception as error:  # a framework or its compiler may raise anything
        lines = str(error).strip().splitlines() or [""]
        return False, f"{type(error).__name__}: {lines[0]}"


def added_memory(work: Callable[[], object]) -> int | None:
    """Peak bytes of this process during `work`, above those before it; None if the system does not report them."""
    try:
        (_PROCESS / "clear_refs").write_text("5")  # resets the peak
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
