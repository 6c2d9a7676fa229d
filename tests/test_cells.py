"""Compiles and runs cells.cpp: proofs on the C++ cells and time loops themselves, at every register width."""

from __future__ import annotations

import subprocess

import pytest

from compiler import ROOT, compile_all
from reference import CELLS

WIDTHS = (16, 32, 64)  # of v2 and neon, v3, v4


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """By width; compilers lower what is wider than this machine's registers."""
    folder = tmp_path_factory.mktemp("cells")
    source = ROOT / "tests" / "cells.cpp"
    options = ["-O1", "-pthread", f"-I{ROOT / 'cpp'}", source]
    programs = {width: folder / f"cells_{width}" for width in WIDTHS}
    compile_all([*options, f"-DTT_VECTOR_BYTES={width}", "-o", program] for width, program in programs.items())
    return programs


@pytest.mark.parametrize("width", WIDTHS)
def test_the_proofs_in_cells_cpp_hold(programs, width):
    done = subprocess.run([programs[width]], capture_output=True, text=True)
    print(done.stdout)
    proofs = done.stdout.splitlines()
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert sum("complex step" in proof for proof in proofs) == len(CELLS)
    assert sum("whole numbers" in proof for proof in proofs) == 3
