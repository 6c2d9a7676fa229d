"""A training loop of any length needs no more memory than a short one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("THROUGHTIME_ROUNDS", "600"))
SIDE = Path(__file__).parent / "rounds_side.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rounds_leave_nothing_behind():
    """If each round left one object, or 48 bytes in C, the second half would leave ROUNDS / 2 of them.

    Caches of fixed size, of NumPy and of Python, account for one or two hundred blocks.
    """
    done = subprocess.run([sys.executable, str(SIDE), str(ROUNDS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    blocks, allocated, _, threads = map(int, done.stdout.split())
    assert blocks < ROUNDS // 2
    assert allocated < 48 * ROUNDS // 2
    assert threads == 0
