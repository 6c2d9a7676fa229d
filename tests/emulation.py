"""The AMX level on a machine without AMX: amx_emulator.cpp catches its instructions and executes them in software."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import pytest

from compiler import LEVEL_OPTIONS, ROOT, compile_all
from throughtime import _core

EMULATES_AMX = bool(os.environ.get("THROUGHTIME_EMULATE_AMX"))  # AMX kernels for any number of sequences
LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
FLAGS = set(Path("/proc/cpuinfo").read_text().split()) if LINUX else set()
HAS_AMX = {"amx_tile", "amx_bf16", "amx_int8"} <= FLAGS
EMULATES = {"avx2", "fma", "bmi2"} <= FLAGS
HAS_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= FLAGS
needs_avx2 = pytest.mark.skipif(not EMULATES, reason="the emulator of AMX needs x86-64 Linux with AVX2")


def build_emulator():
    """The emulator as a shared library."""
    flags = ["-O2", *LEVEL_OPTIONS["v3"], "-shared", "-fPIC"]
    (library,) = compile_all([("amx_emulator.so", [*flags, ROOT / "tests" / "amx_emulator.cpp"])])
    return library


def emulate_amx():
    """Switches to the AMX kernels, for any number of sequences; call it before any other computation in the process."""
    ctypes.CDLL(str(build_emulator())).install_amx_emulator()
    _core.assume_level("amx")
    _core.force(engine="amx")
