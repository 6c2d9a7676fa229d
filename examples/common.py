"""What the examples that train share: options, how lines look, the progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Steps = Annotated[int, typer.Option(min=1, help="Parameter updates of each model.")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights and batches.")]
Plot = Annotated[Path | None, typer.Option(help="Where a plot goes.", show_default=False)]

MAX_NORM = 1.0  # of a gradient over all parameters; larger ones are scaled down
SPAN = 50  # updates whose mean is shown


def falling(lr: float, step: int, steps: int) -> float:
    """The learning rate of a step, the first one being 1: it falls to a tenth in a straight line."""
    return lr * (1 - 0.9 * (step - 1) / steps)


def progress_bar(shown: str) -> Progress:
    """The bar, with a text of the task's fields; nothing where the output is no terminal."""
    console = Console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(shown),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
