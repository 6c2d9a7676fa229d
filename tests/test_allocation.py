"""Whichever of its allocations fails, a call of `_core` raises MemoryError, and works afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compiler import compile_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def failing():
    """The library whose allocations fail on demand."""
    return compile_all([("failing.so", ["-O1", "-shared", "-fPIC", HERE / "failing.cpp", "-ldl"])])[0]


@pytest.mark.parametrize("what", ["bindings", "python", "threads"])
def test_any_allocation_may_fail(failing, what):
    """Of the C++ code; of Python's objects in the bindings; of a thread or of the memory to start one."""
    if what == "python":
        pytest.importorskip("_testcapi", reason="this Python comes without its own tests")
    path = os.pathsep.join([*sys.path, str(HERE)])
    done = subprocess.run(
        [sys.executable, str(HERE / "failing_side.py"), what],
        env=os.environ | {"LD_PRELOAD": str(failing), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    failures = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()}
    assert sum(failures.values()) >= {"bindings": 200, "python": 30, "threads": 20}[what], failures
