""".ci/registers.py on made-up logs: its table, and the logs that it rejects."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from compiler import ROOT

FILE = ROOT / ".ci" / "registers.py"
pytestmark = pytest.mark.skipif(
    not FILE.exists() or not shutil.which("c++filt"), reason="no .ci, as in a source distribution, or no c++filt"
)

ENTRY = """ptxas info    : Compiling entry function '{name}' for '{architecture}'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
"""
FORWARD = "_ZN1t4cuda7forwardI{}EEvT_"  # void t::cuda::forward<S>(S)


def entry(name, registers, architecture="sm_90a", stack=0, stores=0, loads=0):
    return ENTRY.format_map(locals())


@pytest.fixture
def registers():
    spec = importlib.util.spec_from_file_location("registers", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line_for_each_template_and_architecture(registers, tmp_path, capsys):
    log = tmp_path / "log"
    log.write_text(
        "[1/2] Building\nptxas info    : 0 bytes gmem\n"
        + entry(FORWARD.format("f"), 40)
        + entry(FORWARD.format("d"), 168, stack=8)
        + entry(FORWARD.format("f"), 33, "sm_80")
        + entry("_ZN1t12_GLOBAL__N_14copyEv", 12)
    )
    assert registers.main(str(log)) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["copy", "sm_90a", "1", "12-12", "0", "0"],
        ["forward", "sm_80", "1", "33-33", "0", "0"],
        ["forward", "sm_90a", "2", "40-168", "8", "0"],
    ]


@pytest.mark.parametrize("spill", [{"stores": 4}, {"loads": 8}])
def test_a_spill_fails(registers, tmp_path, capsys, spill):
    log = tmp_path / "log"
    log.write_text(entry(FORWARD.format("f"), 255, **spill) + entry(FORWARD.format("d"), 40))
    assert registers.main(str(log)) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("spills")]
    assert line == f"spills {sum(spill.values())} bytes for sm_90a: void t::cuda::forward<float>(float)"


def test_a_log_without_kernels_fails(registers, tmp_path, capsys):
    (tmp_path / "log").write_text("ninja: no work to do.\n")
    assert registers.main(str(tmp_path / "log")) == 1
    assert "no kernel" in capsys.readouterr().out
