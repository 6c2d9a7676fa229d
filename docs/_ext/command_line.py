"""Appends the help of the command `throughtime`, as typer writes it, to the page on the command line."""

from __future__ import annotations

import re
import subprocess
import sys

from sphinx.application import Sphinx

PAGE = "reference/command-line"
DOCS = [sys.executable, "-m", "typer", "throughtime.cli", "utils", "docs", "--name", "throughtime"]


def help_of_commands() -> str:
    """All commands as Markdown, without the help of the group itself."""
    found = subprocess.run(DOCS, check=True, capture_output=True, text=True).stdout
    commands = found[found.index("\n## ") :]
    return re.sub(r"^\* `--help`.*\n", "", commands, flags=re.MULTILINE).replace(" range>`", ">`")


def setup(app: Sphinx) -> dict[str, bool]:
    def append(app: Sphinx, name: str, source: list[str]) -> None:
        if name == PAGE:
            source[0] += help_of_commands()

    app.connect("source-read", append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
