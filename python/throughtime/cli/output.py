"""What the commands share: one-line errors, plain lines on the console, checks of paths before the work starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one line on the standard error; code 2 is typer's own for arguments that it refuses."""
    typer.echo(f"throughtime: error: {message}", err=True)
    raise typer.Exit(code)


def say(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no wrapping, and whatever the terminal cannot show as a question mark."""
    shown = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(shown, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(total: int, console: Console) -> Iterator[Callable[[str], None]]:
    """A bar of so many parts, and what to call after each; nothing where the output is no terminal.

    It is drawn only then: a thread that draws all the time would take a core from what is timed.
    """
    shown = Progress(
        TextColumn("{task.description}"),
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


def save_json(path: Path, data: dict[str, Any], console: Console) -> None:
    """Write a document of plain data, and say so."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    say(console, f"JSON: {path}")


def check_plot_path(path: Path) -> None:
    """Fail unless matplotlib can write a plot there."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        fail(f"--plot {path}: the name must end in one of {', '.join('.' + name for name in sorted(formats))}")
    check_file_path("--plot", path)


def check_file_path(option: str, path: Path) -> None:
    """Fail unless a file can be written there."""
    if path.is_dir():
        fail(f"{option} {path}: is a directory, expected a file name")
    _check_parent(option, path)
    if path.exists() and not os.access(path, os.W_OK):
        fail(f"{option} {path}: no permission to write")


def check_new_file(option: str, path: Path) -> None:
    """Fail unless a file can be made there and none is there yet."""
    check_file_path(option, path)
    if path.exists():
        fail(f"{option} {path}: exists already; choose another name or remove it")


def check_directory_path(option: str, path: Path) -> None:
    """Fail unless a directory is there or can be made there."""
    if path.exists() and not path.is_dir():
        fail(f"{option} {path}: is a file, expected a directory")
    if path.is_dir():
        if not os.access(path, os.W_OK):
            fail(f"{option} {path}: no permission to write")
        return
    _check_parent(option, path)


def _check_parent(option: str, path: Path) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        fail(f"{option} {path}: the directory {parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        fail(f"{option} {path}: no permission to write into {parent}")
