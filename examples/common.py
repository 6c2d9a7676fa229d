"""The common part of the examples that train: options, learning rate, progress bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from throughtime.cli.options import Command
from throughtime.cli.output import Output

Steps = Annotated[int, typer.Option(min=1, help="Parameter updates of each model.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")]
Plot = Annotated[Path | None, typer.Option(help="File of the plot.", show_default=False)]

MAX_NORM = 1.0  # of a gradient over all parameters; larger ones are scaled down
SPAN = 50  # updates whose mean is shown


def run_command(main: Callable[..., None]) -> None:
    """Run an example like the commands of `throughtime`: ``--length 20 50`` is a list, an error is one line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(main)
    app()


def falling(lr: float, step: int, steps: int) -> float:
    """The learning rate at a step, counted from 1: it falls linearly to a tenth."""
    return lr * (1 - 0.9 * (step - 1) / steps)


def progress_bar(shown: str) -> Progress:
    """The bar, with a text of the task's fields; nothing if the output is not a terminal."""
    console = Output()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(shown),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
