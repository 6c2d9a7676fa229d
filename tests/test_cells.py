"""Compiles and runs cells.cpp: proofs of the C++ cells and time loops, at every register width."""

from __future__ import annotations

import subprocess

import pytest

from compiler import AMX_ON_AVX2, LEVEL_OPTIONS, ROOT, compile_all
from emulation import EMULATES, EMULATES_AMX, HAS_AVX512

CELLS = 16
WIDTHS = (16, 32, 64)  # of v2 and neon, v3, v4
RUNS_AMX = EMULATES and (HAS_AVX512 or EMULATES_AMX)  # over a minute on 32-byte registers


@pytest.fixture(scope="module")
def programs():
    """The programs by width; compilers lower vectors wider than this machine's registers."""
    source = ROOT / "tests" / "cells.cpp"
    options = ["-Og", "-pthread", f"-I{ROOT / 'cpp'}", source]
    jobs = {width: [*options, f"-DTT_VECTOR_BYTES={width}"] for width in WIDTHS}
    if RUNS_AMX:
        level = LEVEL_OPTIONS["amx"] if HAS_AVX512 else AMX_ON_AVX2
        jobs["amx"] = [*options, *level, ROOT / "tests" / "amx_emulator.cpp"]
    return dict(zip(jobs, compile_all((f"cells_{name}", job) for name, job in jobs.items()), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        *WIDTHS,
        pytest.param("amx", marks=pytest.mark.skipif(not RUNS_AMX, reason="no AVX-512, and AMX is not emulated")),
    ],
)
def test_the_proofs_in_cells_cpp_hold(programs, name):
    done = subprocess.run([programs[name]], capture_output=True, text=True)
    print(done.stdout)
    proofs = done.stdout.splitlines()
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert sum("complex step" in proof for proof in proofs) == CELLS
    assert sum("whole numbers" in proof for proof in proofs) == 3
