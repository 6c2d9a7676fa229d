""".ci/run runs the commands that the README shows."""

from __future__ import annotations

import re

import pytest

from compiler import ROOT

RUN = ROOT / ".ci" / "run"


@pytest.mark.skipif(not RUN.exists(), reason="no .ci, as in a source distribution")
def test_the_test_command_is_the_readmes():
    commands = [
        re.findall(r"^ *(python3 -m venv \.venv-test .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in (ROOT / "README.md", RUN)
    ]
    assert len(commands[0]) == 1
    assert commands[0] == commands[1]
