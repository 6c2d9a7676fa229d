"""Instruction sets are kept separate: for the linker, and by dispatch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

from compiler import LEVEL_OPTIONS, ROOT, compile_all

SOURCES = ("kernels", "attention", "layer_norm", "activation", "linear", "training")  # compiled per level
X86 = platform.machine() in ("x86_64", "AMD64")
LEVELS = [level for level in LEVEL_OPTIONS if (level != "neon") == X86]

# Functions that compilers call implicitly, from libc or none; nothing of the standard library.
HARMLESS = {
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "sqrt",
    "sqrtf",
    "log",
    "log2",
    "pow",
    "_GLOBAL_OFFSET_TABLE_",
    "__stack_chk_fail",
}


def read_symbols(made, *options):
    """(type, name) of each symbol."""
    if not shutil.which("nm"):
        raise RuntimeError("no nm found; it comes with the compiler, in binutils")
    listing = subprocess.run(["nm", "-P", *options, made], capture_output=True, text=True, check=True).stdout
    found = [(line.split()[1], line.split()[0]) for line in listing.splitlines()]
    if sys.platform == "darwin":  # macOS adds an underscore to every name
        found = [(kind, name.removeprefix("_")) for kind, name in found]
    return found


@pytest.fixture(scope="module")
def symbols():
    """The symbols of each level's code. Unoptimised and without `always_inline`, it includes functions that inlining
    would remove; without exceptions, a `throw` does not compile.

    kernels.cpp is compiled for the last level, and with a few cells for the first one, AMX: levels differ only in
    headers that all sources include, except AMX, whose 16 cells take two minutes.
    """
    flags = ["-O0", "-Dalways_inline=", "-fPIC", "-fno-exceptions", "-fno-math-errno", f"-I{ROOT / 'cpp'}", "-c"]
    pairs = [(source, level) for source in SOURCES for level in LEVELS]
    pairs = [pair for pair in pairs if pair[0] != "kernels" or pair[1] in (LEVELS[0], LEVELS[-1])]
    source_of = {path.stem: path for path in (ROOT / "cpp" / "cpu").rglob("*.cpp")}
    few_cells = ROOT / "tests" / "few_cells.cpp"
    jobs = []
    for source, level in pairs:
        path = few_cells if source == "kernels" and level != LEVELS[-1] else source_of[source]
        jobs.append((f"{source}_{level}.o", [*LEVEL_OPTIONS[level], *flags, f"-DTT_ISA={level}", path]))
    found = {level: [] for level in LEVELS}
    for (_, level), made in zip(pairs, compile_all(jobs), strict=True):
        found[level] += read_symbols(made)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_compiled_per_level_stays_in_its_namespace(symbols, level):
    """A weak symbol of another namespace, made for AVX-512, could serve the whole program: SIGILL elsewhere."""
    own = re.compile(rf"_Z[A-Z]*NK?11throughtime{len(level)}{level}")  # the mangling of throughtime::LEVEL::
    shared = [name for kind, name in symbols[level] if kind == "u" or (kind.isupper() and kind != "U")]
    assert len(shared) > 50
    assert [name for name in shared if not own.match(name)] == []


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_compiled_per_level_needs_only_libc(symbols, level):
    """Or symbols that another of its sources defines."""
    defined = {name for kind, name in symbols[level] if kind != "U"}
    assert {name for kind, name in symbols[level] if kind == "U"} - defined <= HARMLESS


def test_the_built_extension_shares_none_of_its_code():
    """Its only exported symbol is its entry; no function of any instruction set is exported."""
    from throughtime import _core

    if sys.platform != "linux":
        pytest.skip("only ELF lets another library's symbol take the place of one's own")
    seen = read_symbols(_core.__file__, "-D")
    assert "PyInit__core" in {name for _, name in seen}
    assert [name for kind, name in seen if kind != "U" and "throughtime" in name] == []


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
