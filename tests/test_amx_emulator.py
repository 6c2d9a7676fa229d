"""Checks the emulator of Intel AMX, on which other tests of the AMX level rely, against plain loops.

If the processor has AMX, its own instructions pass the same comparison, so that both agree with each other.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from compiler import AMX_ON_AVX2, ROOT, compile_all
from emulation import HAS_AMX, build_emulator, needs_avx2

pytestmark = needs_avx2
emulated = pytest.mark.skipif(HAS_AMX, reason="this processor executes AMX itself, so there is nothing to emulate")
native = pytest.mark.skipif(not HAS_AMX, reason="this processor has no AMX to compare the emulator with")

# A mistake of amx_emulator_check.cpp, and the emulator's message.
MISTAKES = {
    "load before configuration": "TILELOADD: tiles are not configured",
    "store before configuration": "TILESTORED: tiles are not configured",
    "zero before configuration": "TILEZERO: tiles are not configured",
    "product before configuration": "TDPBF16PS: tiles are not configured",
    "product after release": "TDPBSSD: tiles are not configured",
    "palette": "LDTILECFG: the palette is neither 0 nor 1",
    "start row": "LDTILECFG: start_row is not 0, which is not emulated",
    "reserved": "LDTILECFG: a reserved byte is not 0",
    "ninth tile": "LDTILECFG: a reserved byte is not 0",
    "rows": "LDTILECFG: a tile has more than 16 rows",
    "bytes": "LDTILECFG: a tile has more than 64 bytes per row",
    "rows without bytes": "LDTILECFG: a tile has rows without bytes or bytes without rows",
    "bytes without rows": "LDTILECFG: a tile has rows without bytes or bytes without rows",
    "load into absent tile": "TILELOADDT1: one of its tiles has no rows in the configuration",
    "destination is first source": "TDPBF16PS: two of its tiles are the same",
    "destination is second source": "TDPBF16PS: two of its tiles are the same",
    "sources are the same": "TDPBSSD: two of its tiles are the same",
    "rows differ": "TDPBF16PS: destination and first source differ in rows",
    "columns differ": "TDPBSUD: destination and second source differ in bytes per row",
    "inner sizes differ": "TDPBUSD: the first source's bytes per row are not 4 times the second source's rows",
    "odd bytes": "TDPBUUD: bytes per row are no multiple of 4",
}

# Each differs by one byte from an instruction that the emulator knows; a processor with AMX refuses them too.
REFUSED = {
    "ud2": "0f0b",
    "tilerelease with a register": "c4e27849c1",
    "tilerelease with W": "c4e2f849c0",
    "tilerelease with L": "c4e27c49c0",
    "tilerelease with a third operand": "c4e27049c0",
    "tilezero of tile 8": "c4627b49c0",
    "tileloadd without index byte": "c4e27b4b00",
    "tdpbf16ps into tile 8": "c462725cda",
    "tdpbf16ps from tile 9": "c4e2325cda",
}

RUN_BYTES = """
import ctypes, mmap, os, signal, sys
library, code = sys.argv[1:]
assert ctypes.CDLL(library).install_amx_emulator() == 0
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
def run(code):
    page.seek(0)
    page.write(bytes.fromhex(code) + bytes([0xC3]))
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
run("c4e27849c0")
print("tilerelease ran", flush=True)
run(code) if code else os.kill(os.getpid(), signal.SIGILL)
"""


@pytest.fixture(scope="module")
def emulator():
    return build_emulator()


@pytest.fixture(scope="module")
def check():
    source = ROOT / "tests" / "amx_emulator_check.cpp"
    (program,) = compile_all([("amx_emulator_check", ["-O1", *AMX_ON_AVX2, "-mamx-int8", "-pthread", source, "-ldl"])])
    return program


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return done


def assert_proofs_hold(done):
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * 12


@emulated
def test_the_emulator_agrees_with_plain_loops(check, emulator):
    assert_proofs_hold(run(check, emulator))


@native
def test_the_processor_agrees_with_plain_loops(check):
    done = run(check, "processor")
    if done.returncode == 77:
        pytest.skip("the processor has AMX, but the system does not permit it")
    assert_proofs_hold(done)


@emulated
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_aborts_with_the_reason(check, emulator, mistake):
    done = run(check, emulator, mistake)
    assert done.returncode == -signal.SIGABRT
    assert done.stderr == f"amx_emulator: {MISTAKES[mistake]}\n"


@emulated
@pytest.mark.parametrize("code", [*REFUSED.values(), ""], ids=[*REFUSED, "sent by kill"])
def test_what_the_emulator_does_not_know_reaches_the_handler_before_it(emulator, code):
    done = run(sys.executable, "-X", "faulthandler", "-c", RUN_BYTES, emulator, code)
    assert done.stdout == "tilerelease ran\n"
    assert "Fatal Python error: Illegal instruction" in done.stderr
    assert done.returncode == -signal.SIGILL
