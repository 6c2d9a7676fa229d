"""What the examples that train share: options, how lines look, the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from throughtime.cli.options import Command
from throughtime.cli.output import Output

Steps = Annotated[int, typer.Option(min=1, help="Parameter updates of each model.")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights and batches.")]
Plot = Annotated[Path | None, typer.Option(help="Where a plot goes.", show_default=False)]

MAX_NORM = 1.0  # of a gradient over all parameters; larger ones are scaled down
SPAN = 50  # updates whose mean is shown


def run_command(main: Callable[..., None]) -> None:
    """Run an example as the command line's own commands run: ``--length 20 50`` is a list, an error one line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(main)
    app()


def falling(lr: float, step: int, steps: int) -> float:
    """The learning rate of a step, the first one being 1: it falls to a tenth in a straight line."""
    return lr * (1 - 0.9 * (step - 1) / steps)


def progress_bar(shown: str) -> Progress:
    """The bar, with a text of the task's fields; nothing where the output is no terminal."""
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
