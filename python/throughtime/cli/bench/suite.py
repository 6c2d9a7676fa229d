"""The interface of a suite: its cases, a description of the machine, and the columns of its table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import fail
from ..options import pick
from ..output import Output
from . import formatting, machine
from .case import Case
from .result import Result, Row

if TYPE_CHECKING:
    from .options import Options

Columns = Mapping[str, Callable[[Row], str]]  # heading to contents

PAIR: Columns = {
    "ms\nours": lambda row: formatting.milliseconds(row.mine),
    "ms\ntheirs": lambda row: formatting.milliseconds(row.other),
    "\nratio": lambda row: formatting.median(row.ratios),
}


def pick_problems(
    options: Options, problems: Mapping[str, Sequence[Any]], default: Sequence[str], cells: Sequence[str]
) -> list[tuple[str, Any]]:
    """The problems of the chosen names and cells, each with its name."""
    names = pick("--problems", options.problems, tuple(problems), tuple(default))
    chosen = pick("--cells", options.cells, tuple(cells), tuple(cells))
    found = [(name, problem) for name in names for problem in problems[name] if problem.cell in chosen]
    if not found:
        fail(f"--cells {' '.join(chosen)}: none of the problems {', '.join(names)} has such a cell")
    return found


class Suite(ABC):
    """One kind of benchmark. Its constructor refuses options that do not belong to it, before any work."""

    cases: Sequence[Case]
    rounds: int
    width: ClassVar[int] = 140  # width of a table that is written to a file
    axis = "time of the other / time of throughtime"  # label of the plot's axis
    no_plot: ClassVar[str] = "no plot: there is no ratio without a contender"

    @abstractmethod
    def prepare(self, console: Output) -> dict[str, Any]:
        """Open the device and import frameworks, print the missing ones; return a description of the machine."""

    def settle(self, about: dict[str, Any]) -> None:  # noqa: B027 (nothing to add for a GPU)
        """Complete the description after the measurements."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The suite's settings, for JSON."""

    @abstractmethod
    def title(self, about: Mapping[str, Any]) -> str:
        """The title of tables and plot."""

    @abstractmethod
    def caption(self, about: Mapping[str, Any]) -> str:
        """The meaning of the columns."""

    @abstractmethod
    def columns(self, about: Mapping[str, Any]) -> tuple[Columns, Columns, Columns]:
        """The table's columns: words, speed, and the rest, which a narrow console shows in a second table."""

    def details(self, result: Result, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """Further figures on a contender, for JSON."""
        return {}

    def remarks(self, results: Sequence[Result], about: Mapping[str, Any]) -> list[str]:
        """Lines below the table."""
        return []

    @abstractmethod
    def may_fail(self, name: str) -> bool:
        """Whether the command succeeds although this contender fails. A wrong answer always fails it."""


class HostSuite(Suite):
    """A suite on the CPU, whose load matters."""

    threads: int
    what: str  # the measured quantity

    def prepare(self, console: Output) -> dict[str, Any]:
        """The machine, before this command does any work."""
        return machine.describe()

    def settle(self, about: dict[str, Any]) -> None:
        machine.describe_after(about)

    def settings(self) -> dict[str, Any]:
        return {"device": "cpu", "threads": self.threads}

    def title(self, about: Mapping[str, Any]) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        title = f"{self.what}, float32: {about['cpu']}, {about['instruction_set']}, {threads}"
        if about["busy"]:
            return f"BUSY MACHINE, do not rely on these times: {'; '.join(about['busy'])}\n{title}"
        return title

    def remarks(self, results: Sequence[Result], about: Mapping[str, Any]) -> list[str]:
        said = [f"load {about['load_before']:.2f} before, {about['load_after']:.2f} after, this command included"]
        if about["environment"]:
            said.append("set in the environment: " + " ".join(f"{k}={v}" for k, v in about["environment"].items()))
        return said
