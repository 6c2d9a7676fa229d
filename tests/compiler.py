"""The C++ compiler, for tests that inspect the kernels or their object code."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINES = [line.split() for line in (ROOT / "cpp" / "levels.txt").read_text().splitlines() if line[0] != "#"]
LEVEL_OPTIONS = {level: options for level, *options in _LINES}
# The AMX level for processors with AVX2, on which AMX instructions are emulated.
AMX_ON_AVX2 = ["-march=x86-64-v3", *LEVEL_OPTIONS["amx"][1:], "-DTT_VECTOR_BYTES=64"]


def compiler():
    """The command in $CXX, or the first usual name that exists, as a list."""
    for command in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if command and shutil.which(shlex.split(command)[0]):
            return shlex.split(command)
    raise RuntimeError(
        "no C++ compiler as $CXX, c++, g++ or clang++; throughtime needs one to build, and so do its tests"
    )


CACHE = Path(tempfile.gettempdir()) / f"throughtime-tests-{os.getuid()}"


def compile_all(jobs):
    """Compile each job, a pair of the result's file name and the compiler's arguments; return the files' paths.

    Files from earlier runs with the same arguments and sources are taken from `CACHE`. Concurrent processes wait.
    """
    jobs = [(name, [*compiler(), "-std=c++20", "-w", "-Wno-psabi", *map(str, arguments)]) for name, arguments in jobs]
    files = [CACHE / f"{_digest(command)}-{name}" for name, command in jobs]
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "lock", "w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        list(pool.map(_compile, [command for _, command in jobs], files))
    return files


def _compile(command, file):
    if file.exists():
        return
    done = subprocess.run([*command, "-o", f"{file}.part"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    os.replace(f"{file}.part", file)


def _digest(command):
    """A hash of the command and of all our sources that it may read."""
    files = [Path(argument) for argument in command if Path(argument).is_file()]
    digest = hashlib.sha256("\0".join(command).encode() + _sources())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _sources():
    return b"".join(path.read_bytes() for path in sorted((ROOT / "cpp").rglob("*.[hc]pp")))
