"""The options of `throughtime bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import fail
from ..options import Force, pick
from .layers.cpu import MODES
from .layers.cuda import RECURRENT
from .layers.dtypes import PRECISIONS, TYPES
from .layers.implementations import FRAMEWORKS
from .layers.problems import CELLS, CPU_PROBLEMS, GPU_PROBLEMS
from .steps.contenders import AGAINST
from .steps.problems import PROBLEMS, STEP_CELLS

_DEVICES = ("cpu", "cuda")


@dataclass
class Options:
    """The command's options as given. Each kind of benchmark has its own names and defaults for lists."""

    against: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Contenders: {', '.join(FRAMEWORKS)}; with --step {', '.join(AGAINST)}; "
            f"on a GPU {', '.join(RECURRENT)}.",
            metavar="NAME ...",
            show_default="torch; cudnn",
        ),
    ] = None
    problems: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Some of {', '.join(CPU_PROBLEMS)}; with --step {', '.join(PROBLEMS)}; "
            f"on a GPU {', '.join(GPU_PROBLEMS)}.",
            metavar="NAME ...",
            show_default="all but million; all; all but mark",
        ),
    ] = None
    cells: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Some of {', '.join(CELLS)}; with --step {', '.join(STEP_CELLS)}.",
            metavar="NAME ...",
            show_default="all",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads of every contender.", show_default="the library's"),
    ] = None
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 7
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Precisions of our products: {', '.join(PRECISIONS)}.", metavar="NAME ...", show_default="highest"
        ),
    ] = None
    memory: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Memory modes of ours to compare: {', '.join(MODES)}.", metavar="NAME ...", show_default="full"
        ),
    ] = None
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure peak memory.")] = False
    json: Annotated[Path | None, typer.Option(help="Write all results to this JSON file.", show_default=False)] = None
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this file.", show_default=False)] = None
    device: Annotated[str, typer.Option(help=f"{' or '.join(_DEVICES)}.", metavar="NAME")] = "cpu"
    types: Annotated[
        list[str] | None,
        typer.Option(help=f"On a GPU: {', '.join(TYPES)}.", metavar="NAME ...", show_default="all"),
    ] = None
    step: Annotated[
        bool,
        typer.Option(
            "--step", help="Whole training steps of small models: forward, loss, backward, clip_grad_norm, Adam."
        ),
    ] = False
    beside: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="With --step: compare all threads with one while this many other processes are busy.",
            show_default=False,
        ),
    ] = None
    force: Force = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return pick("--device", [self.device], _DEVICES, ()) == ["cuda"]

    def refuse(self, where: str, *names: str) -> None:
        """Fail if one of these options was given, which have a meaning elsewhere only."""
        for name in names:
            if getattr(self, name):
                fail(f"--{name.replace('_', '-')}: only {where}")
