"""Instruction sets are kept apart: in the linker's eyes, and by dispatch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

from compiler import ROOT, compile_all

LEVEL, FLAGS = ("v3", ["-march=x86-64-v3"]) if platform.machine() in ("x86_64", "AMD64") else ("neon", [])

# What compilers call on their own, from libc or none; nothing of the standard library.
HARMLESS = {"memcpy", "memmove", "memset", "memcmp", "sqrt", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}


@pytest.fixture(scope="module")
def symbols(tmp_path_factory):
    """(type, name) of each symbol of the per-level code. Unoptimised, it still has what inlining would hide;
    without exceptions, a `throw` does not compile."""
    if not shutil.which("nm"):
        raise RuntimeError("no nm found; it comes with the compiler, in binutils")
    made = tmp_path_factory.mktemp("symbols") / "kernels.o"
    flags = [*FLAGS, "-O0", "-fPIC", "-fno-exceptions", "-fno-math-errno", f"-DTT_ISA={LEVEL}"]
    compile_all([[*flags, "-c", ROOT / "cpp" / "cpu" / "kernels.cpp", "-o", made]])
    listing = subprocess.run(["nm", "-P", made], capture_output=True, text=True, check=True).stdout
    found = [(line.split()[1], line.split()[0]) for line in listing.splitlines()]
    if sys.platform == "darwin":  # where every name has one underscore more
        found = [(kind, name.removeprefix("_")) for kind, name in found]
    return found


def test_what_is_compiled_per_level_stays_in_its_namespace(symbols):
    """A weak symbol of any other namespace, made for AVX-512, could serve the whole program: SIGILL elsewhere."""
    own = re.compile(rf"_Z[A-Z]*NK?11throughtime{len(LEVEL)}{LEVEL}")  # the mangling of throughtime::LEVEL::
    shared = [name for kind, name in symbols if kind == "u" or (kind.isupper() and kind != "U")]
    assert len(shared) > 50
    assert [name for name in shared if not own.match(name)] == []


def test_what_is_compiled_per_level_needs_only_libc(symbols):
    assert {name for kind, name in symbols if kind == "U"} <= HARMLESS


def show_config(isa):
    code = "import throughtime as tt; print(tt.show_config('dicts')['instruction set in use'])"
    environment = os.environ | {"THROUGHTIME_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def levels_here():
    from throughtime import _core

    return [name for name, supported in _core.levels() if supported]


@pytest.mark.parametrize("isa", levels_here())
def test_a_level_can_be_forced(isa):
    done = show_config(isa)
    assert done.stdout.strip() == isa, done.stderr


def test_the_best_level_is_the_default():
    assert show_config("").stdout.strip() == levels_here()[0]


def test_an_unknown_level_is_an_error_that_names_those_there_are():
    done = show_config("v9")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "THROUGHTIME_ISA is 'v9'" in last
    assert last.endswith(": " + ", ".join(levels_here())), last
