"""With too little memory a call of the public interface raises MemoryError, and nothing else; then all is intact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")

HERE = Path(__file__).parent
# Freed memory returns to the system at once, and other libraries start no threads, so that the limit is what is left.
STRICT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("group", ["recurrent", "layer", "training", "analysis"])
def test_calls_with_little_memory(group):
    """Most calls fail at least once before they succeed; a few need no memory beyond that of the process."""
    done = subprocess.run(
        [sys.executable, str(HERE / "limited_side.py"), group],
        env=os.environ | STRICT | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    failures = [int(line.split("\t")[1]) for line in done.stdout.splitlines()]
    assert len(failures) >= 9
    assert sum(count > 0 for count in failures) > 0.8 * len(failures), done.stdout
