"""Compiles and runs cells.cpp: proofs of the C++ cells and time loops, at every register width."""

from __future__ import annotations

import re
import subprocess

import pytest

from compiler import AMX_ON_AVX2, LEVEL_OPTIONS, ROOT, compile_all
from emulation import EMULATES, EMULATES_AMX, HAS_AVX512
from problems import KINDS, Problem

# The kernels that layers choose, with zoneout or without; an RNN has one for each.
CELLS = {Problem(kind, zoneout=zoneout).layer().architecture.cell for kind in KINDS for zoneout in (0.0, 0.3)}
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
    steps = re.findall(r"complex step: (\w+), relative error", done.stdout)
    assert len(steps) == len(CELLS)
    assert set(steps) == CELLS
    assert sum("whole numbers" in proof for proof in proofs) == 3
