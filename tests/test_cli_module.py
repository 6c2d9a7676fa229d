"""`python -m throughtime` is the command line."""

import subprocess
import sys

import pytest

import throughtime as tt

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")


def test_the_module_runs_as_the_command_does():
    found = subprocess.run(
        [sys.executable, "-m", "throughtime", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"throughtime {tt.__version__}\n"
