"""Shared by the commands: plain lines on the console, files, checks of paths before the work starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from throughtime._files import check_writable, replacing
from throughtime._text import visible

from .errors import fail


class Output(Console):
    """The standard output, without markup. A failure to write raises an error, as for any file."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> NoReturn:
        """Re-raise the current error; rich would exit silently."""
        raise


def say(console: Console, text: str, keep: str = "") -> None:
    """Print a line as it is: no markup, no wrapping; control characters are escaped, except those in `keep`.

    Characters that the terminal cannot show become question marks.
    """
    shown = visible(text, keep).encode(console.encoding, "replace").decode(console.encoding)
    console.file.write(f"{shown}\n")  # rich would turn tabs into spaces
    console.file.flush()


@contextmanager
def progress(total: int, console: Console) -> Iterator[Callable[[str], None]]:
    """A progress bar of `total` parts; yields a function to call after each. No bar if the output is not a terminal.

    The bar is drawn by these calls only: a drawing thread would take a core from the program being timed.
    """
    shown = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        auto_refresh=False,
    )
    with shown:
        bar = shown.add_task("", total=total)
        shown.refresh()
        yield lambda description: shown.update(bar, advance=1, description=description, refresh=True)


def save_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data as JSON."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def check_plot_path(path: Path, option: str = "--plot") -> None:
    """Fail unless matplotlib can write a plot there."""
    try:
        from matplotlib.figure import Figure
    except ValueError as error:
        fail(f"MPLBACKEND={os.environ.get('MPLBACKEND')}: matplotlib does not start ({error})")
    figure, ending = Figure(figsize=(1, 1)), path.suffix[1:].lower()
    formats = figure.canvas.get_supported_filetypes()
    if ending not in formats:
        fail(f"{option} {path}: the name must end in one of {', '.join('.' + name for name in sorted(formats))}")
    check_file_path(option, path)
    figure.text(0, 0, "a")
    try:
        figure.savefig(BytesIO(), format=ending)
    except (KeyError, OSError, RuntimeError, ValueError) as error:  # the format needs another program or library
        fail(f"{option} {path}: matplotlib cannot draw it: {error}")


def check_file_path(option: str, path: Path) -> None:
    """Fail unless a file can be written there."""
    if path.is_dir():
        fail(f"{option} {path}: is a directory, expected a file name")
    _check_parent(option, path)
    if path.exists() and not os.access(path, os.W_OK):
        fail(f"{option} {path}: no permission to write")


def check_new_file(option: str, path: Path, force: bool = False) -> None:
    """Fail unless a file can be written there, and none exists or it may be replaced."""
    check_file_path(option, path)
    if path.is_file() and not force:
        fail(f"{option} {path}: exists already; choose another name, or replace it with --force")


def check_directory_path(option: str, path: Path) -> None:
    """Fail unless the directory exists or can be made."""
    if path.exists() and not path.is_dir():
        fail(f"{option} {path}: is a file, expected a directory")
    if path.is_dir():
        _check_writable(option, path, path)
    else:
        _check_parent(option, path)


def _check_parent(option: str, path: Path) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        fail(f"{option} {path}: the directory {parent} does not exist")
    _check_writable(option, path, parent)


def _check_writable(option: str, path: Path, directory: Path) -> None:
    try:
        check_writable(directory)
    except OSError as error:
        fail(f"{option} {path}: cannot write into {directory}: {error.strerror}")
