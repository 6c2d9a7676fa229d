"""Busy processes for `--beside`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..case import NotMeasured

_BOUND = 900  # seconds after which a busy process ends by itself
_BUSY_LOOP = f"import time\nprint(flush=True)\nend = time.monotonic() + {_BOUND}\nwhile time.monotonic() < end: pass"


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that each keep a core busy.

    Raises
    ------
    NotMeasured
        If one has ended before the round that it should disturb.
    """
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
            raise NotMeasured(f"a busy process ended before its round, which took more than {_BOUND} s")
    finally:
        for process in started:
            process.kill()
            process.communicate()
