"""The types that users see: mypy on programs outside the package, and the stub of the compiled extension."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import throughtime
from compiler import CACHE
from throughtime import _core

PACKAGE = Path(throughtime.__file__).parent
TESTS = Path(__file__).parent
needs_mypy = pytest.mark.skipif(shutil.which("mypy") is None, reason="mypy is not installed")


def run(folder, *command):
    """The exit status and the output of a command of mypy in `folder`, for which the package is an installed one."""
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "MYPY_CACHE_DIR": str(CACHE / "mypy")}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The lines that mypy reports in each program, and its output."""
    folder = tmp_path_factory.mktemp("programs")
    names = ("typing_program.py", "typing_mistakes.py")
    for name in names:
        shutil.copy(TESTS / name, folder)
    _, output = run(folder, "mypy", "--strict", "--config-file=", *names)
    found = re.findall(r"^(\w+\.py):(\d+): error", output, re.MULTILINE)
    return {name: {int(line) for file, line in found if file == name} for name in names}, output


@needs_mypy
def test_a_correct_program_passes_the_strict_check(reports):
    lines, output = reports
    assert "Found" in output  # mypy ran to its end
    assert lines["typing_program.py"] == set(), output


@needs_mypy
def test_every_mistake_is_reported(reports):
    lines, output = reports
    source = (TESTS / "typing_mistakes.py").read_text().splitlines()
    marked = {number for number, line in enumerate(source, 1) if line.endswith("# mistake")}
    assert len(marked) > 20
    assert lines["typing_mistakes.py"] == marked, output


@needs_mypy
def test_the_stub_has_the_names_of_the_extension(tmp_path):
    (tmp_path / "absent").write_text(r"throughtime\._core\.jax_handlers")  # only in a build with jax
    options = ("--concise", "--allowlist=absent", "--ignore-unused-allowlist")
    status, output = run(tmp_path, "mypy.stubtest", "throughtime._core", *options)
    assert status == 0, output


def test_the_stub_has_the_arguments_of_the_functions():
    """As pybind11 documents them: an argument without a name is positional."""
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    functions = {node.name: node.args for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert len(functions) > 30
    for name in functions.keys() & vars(_core).keys():
        signature = getattr(_core, name).__doc__.partition(" -> ")[0]
        named = re.findall(r"(\w+): ", signature)
        positional = [each for each in named if re.fullmatch(r"arg\d", each)]
        stub_of = functions[name]
        assert len(stub_of.posonlyargs) == len(positional), name
        assert [argument.arg for argument in stub_of.args] == named[len(positional) :], name
