"""The options of `throughtime accuracy`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from throughtime import _core

from ..bench.layers.dtypes import PRECISIONS
from ..options import Force, pick
from .functions import FUNCTIONS, mpmath_version
from .inputs import FULL, INPUTS, QUICK
from .kernels import KERNELS
from .measure import Plan

TYPES = ("float32", "float64")


def _names(help: str, names: Iterable[str] = (), default: str = "all") -> Any:
    listed = f"{help}: {', '.join(names)}." if names else f"{help}."
    return typer.Option(help=listed, metavar="NAME ...", show_default=default)


_List = list[str] | None


@dataclass
class Options:
    """The command's options as given."""

    functions: Annotated[_List, _names("Some of the functions", FUNCTIONS, "all, or none with --kernels")] = None
    kernels: Annotated[_List, _names("Some of the kernels", KERNELS, "all, or none with --functions")] = None
    levels: Annotated[_List, _names("Instruction sets, of those that this machine supports")] = None
    types: Annotated[_List, _names("Number types", TYPES)] = None
    precision: Annotated[_List, _names("Precisions of float32 products", PRECISIONS, "those of the processor")] = None
    inputs: Annotated[_List, _names("Distributions of the inputs", INPUTS)] = None
    points: Annotated[
        int | None, typer.Option(min=1, help="Arguments of each function.", show_default="4000; 400 with --quick")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of inputs and weights.")] = 0
    quick: Annotated[bool, typer.Option("--quick", help="Few arguments, small kernels.")] = False
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown tables; the default unless the output is a terminal.")
    ] = False
    json: Annotated[Path | None, typer.Option(help="Write all results to this JSON file.", show_default=False)] = None
    force: Force = False

    def chosen_levels(self) -> list[str]:
        """The levels that take part."""
        supported = tuple(name for name, supported in _core.levels() if supported)
        return pick("--levels", self.levels, supported, supported)

    def plan(self) -> Plan:
        """What is measured at each level."""
        functions, kernels = tuple(FUNCTIONS), tuple(KERNELS)
        return Plan(
            functions=pick("--functions", self.functions, functions, () if self.kernels else functions),
            kernels=pick("--kernels", self.kernels, kernels, () if self.functions else kernels),
            types=pick("--types", self.types, TYPES, TYPES),
            precisions=pick("--precision", self.precision, PRECISIONS, PRECISIONS),
            inputs=pick("--inputs", self.inputs, INPUTS, INPUTS),
            points=self.points or (400 if self.quick else 4000),
            sizes=QUICK if self.quick else FULL,
            seed=self.seed,
            exact=mpmath_version() is not None,
        )
