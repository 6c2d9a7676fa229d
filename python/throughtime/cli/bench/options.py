"""The options of `throughtime bench`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import fail
from ..options import Force, pick
from .layers.dtypes import PRECISIONS, TYPES
from .layers.implementations import FRAMEWORKS, MODES, RECURRENT
from .layers.problems import CELLS, CPU_PROBLEMS, GPU_CELLS, GPU_PROBLEMS
from .steps.contenders import AGAINST
from .steps.problems import PROBLEMS, STEP_CELLS

_DEVICES = ("cpu", "cuda")


def _names(default: str, help: str, *others: Iterable[str]) -> Any:
    """A list option; `others` are the names with --step and on a GPU."""
    with_others = zip(("with --step", "on a GPU"), others, strict=False)
    parts = [help, *(f"{where} {', '.join(names)}" for where, names in with_others)]
    return typer.Option(help=f"{'; '.join(parts)}.", metavar="NAME ...", show_default=default)


_List = list[str] | None


@dataclass
class Options:
    """The command's options as given. Each kind of benchmark has its own names and defaults for lists."""

    against: Annotated[_List, _names("torch; cudnn", f"Contenders: {', '.join(FRAMEWORKS)}", AGAINST, RECURRENT)] = None
    problems: Annotated[
        _List,
        _names("all but million; all; all but mark", f"Some of {', '.join(CPU_PROBLEMS)}", PROBLEMS, GPU_PROBLEMS),
    ] = None
    cells: Annotated[_List, _names("all", f"Some of {', '.join(CELLS)}", STEP_CELLS, GPU_CELLS)] = None
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads of every contender.", show_default="the library's"),
    ] = None
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 7
    precision: Annotated[_List, _names("highest", f"Precisions of our products: {', '.join(PRECISIONS)}")] = None
    memory: Annotated[_List, _names("full", f"Memory modes of ours to compare: {', '.join(MODES)}")] = None
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure peak memory.")] = False
    json: Annotated[Path | None, typer.Option(help="Write all results to this JSON file.", show_default=False)] = None
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this file.", show_default=False)] = None
    device: Annotated[str, typer.Option(help=f"{' or '.join(_DEVICES)}.", metavar="NAME")] = "cpu"
    types: Annotated[_List, _names("all", f"On a GPU: {', '.join(TYPES)}")] = None
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
        """Fail if one of these options was given, which are valid only elsewhere (`where`)."""
        for name in names:
            if getattr(self, name):
                fail(f"--{name.replace('_', '-')}: only {where}")
