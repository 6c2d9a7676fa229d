"""The C++ compiler, for tests that look at the kernels from inside or at what they compile to."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINES = [line.split() for line in (ROOT / "cpp" / "levels.txt").read_text().splitlines() if line[0] != "#"]
LEVEL_OPTIONS = {level: options for level, *options in _LINES}
# The AMX level for processors with AVX2, where its own instructions are emulated.
AMX_ON_AVX2 = ["-march=x86-64-v3", *LEVEL_OPTIONS["amx"][1:], "-DTT_VECTOR_BYTES=64"]


def compiler():
    """The command in $CXX, else the first usual name that is found, as a list."""
    for command in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if command and shutil.which(shlex.split(command)[0]):
            return shlex.split(command)
    raise RuntimeError(
        "no C++ compiler as $CXX, c++, g++ or clang++; throughtime needs one to build, and so do its tests"
    )


def compile_all(jobs):
    """Compile each list of arguments, all at once, and fail with what the compiler said."""
    cxx = [*compiler(), "-std=c++20", "-w", "-Wno-psabi"]
    running = [subprocess.Popen([*cxx, *map(str, job)], stderr=subprocess.PIPE, text=True) for job in jobs]
    said = [process.communicate()[1] for process in running]
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, f"{shlex.join(process.args)}\n{text}"
