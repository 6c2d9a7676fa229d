"""`throughtime bench --device cuda`: its options, checked; what it measures; what it writes."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import typer

import throughtime as tt

from ...errors import FAILED, INTERRUPTED, fail
from ...options import pick
from ...output import Output, progress, save_json, say
from ..contenders import OURS
from .device import Device, ceilings, describe, open_device
from .problems import CELLS, DEFAULT, PROBLEMS, AddNorm, Problem

PRECISIONS = ("highest", "high", "medium")
TYPES = ("float16", "bfloat16", "float32")
RECURRENT, ROWS = ("cudnn", "flashrnn", "torch-loop"), ("torch", "copy")
_WIDTH = 170  # of a table that goes into a file


class Request(NamedTuple):
    """The command's options as they were given."""

    against: Sequence[str] | None
    problems: Sequence[str] | None
    cells: Sequence[str] | None
    types: Sequence[str] | None
    precision: Sequence[str] | None
    rounds: int
    json: Path | None
    plot: Path | None


@dataclass
class Plan:
    """What is to be measured, by whom, in which numbers."""

    problems: list[Problem]
    against: list[str]
    numbers: list[Any]
    rounds: int

    def names(self, problem: Problem) -> list[str]:
        """Who takes part."""
        return [OURS, *(ROWS if isinstance(problem, AddNorm) else self.against)]


@dataclass
class Findings:
    """What was measured so far."""

    results: list[Any] = field(default_factory=list)
    interrupted: bool = False


def bench_cuda(request: Request) -> None:
    """Measure on the current GPU: every answer against float64 first, then times between events, in turn."""
    problems = _problems(request)
    against = pick("--against", request.against, RECURRENT, ("cudnn",))
    types = pick("--types", request.types, TYPES, TYPES)
    precisions = pick("--precision", request.precision, PRECISIONS, ("highest",))
    device = open_device()
    console = Output(None if sys.stdout.isatty() else _WIDTH)
    plan = Plan(problems, _present(against, console), _numbers(types, precisions), request.rounds)
    about = describe(device) | {"ceilings": ceilings(device)}
    findings = run(plan, device, console)
    try:
        if request.json is not None:
            save_json(request.json, document(plan, findings, about))
    finally:  # where one of the two fails, there is still the other
        report(plan, findings, about, console)
    if request.json is not None:
        say(console, f"JSON: {request.json}")
    if request.plot is not None:
        _plot(request.plot, findings, about, console)
    _leave(findings)


def run(plan: Plan, device: Device, console: Output) -> Findings:
    """Measure what is planned. Ctrl-C ends it with what there is."""
    from .measure import measure

    findings = Findings()
    total = sum(1 + len(problem.passes) for problem in plan.problems)
    try:
        with progress(total, console) as advance:
            for problem in plan.problems:
                tick = functools.partial(advance, problem.name)
                findings.results.append(measure(problem, plan.names(problem), plan.numbers, device, plan.rounds, tick))
    except KeyboardInterrupt:
        findings.interrupted = True
    finally:
        tt.set_matmul_precision("highest")
    return findings


def report(plan: Plan, findings: Findings, about: dict[str, Any], console: Output) -> None:
    """The table, then lines."""
    from .report import results_table, summary, troubles

    if findings.results:
        title = f"{about['name']}, torch {about['torch']}"
        console.print(results_table(findings.results, about["ceilings"], title, _caption(plan, about["ceilings"])))
    for line in (*troubles(findings.results), *summary(findings.results)):
        say(console, line)
    if findings.interrupted:
        say(console, f"interrupted after {len(findings.results)} of {len(plan.problems)}")


def document(plan: Plan, findings: Findings, about: dict[str, Any]) -> dict[str, Any]:
    """Everything, as JSON has it."""
    from .report import as_data

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": about,
        "rounds": plan.rounds,
        "interrupted": findings.interrupted,
        "results": [as_data(result, about["ceilings"]) for result in findings.results],
    }


def _problems(request: Request) -> list[Problem]:
    groups = pick("--problems", request.problems, tuple(PROBLEMS), DEFAULT)
    cells = pick("--cells", request.cells, CELLS, CELLS)
    problems = [problem for name in groups for problem in PROBLEMS[name] if problem.cell in cells]
    if not problems:
        fail(f"--cells {' '.join(cells)}: none of the problems {', '.join(groups)} has such a cell")
    return problems


def _present(against: Sequence[str], console: Output) -> list[str]:
    from .contenders import NEEDS, available

    for name in against:
        if not available(name):
            say(console, f"{NEEDS[name]} is not installed: pip install {NEEDS[name]}")
    return [name for name in against if available(name)]


def _numbers(types: Sequence[str], precisions: Sequence[str]) -> list[Any]:
    from .numbers import Numbers

    return [
        Numbers(type, precision) for type in types for precision in (precisions if type == "float32" else ("highest",))
    ]


def _caption(plan: Plan, found: dict[str, float]) -> str:
    products = f"{found['bfloat16_flops'] / 1e12:.0f} TFLOP/s that torch.matmul reaches in bfloat16"
    memory = f"{found['copy_bytes_per_second'] / 1e12:.2f} TB/s of a copy"
    return (
        f"ms: median of {plan.rounds} rounds in turn; forward: inference; ratio: median of the rounds' theirs / ours; "
        "error: largest of all tensors, relative to float64, root mean square; % of ceiling: of our time, what products"
        f" take at the {products} or memory at the {memory}, whichever is longer and binds, unless the steps' latency "
        "does; cuDNN has a persistent kernel for the float16 LSTM, the rest is its standard path; the input's product "
        "of flashrnn and of the loop is torch's"
    )


def _plot(path: Path, findings: Findings, about: dict[str, Any], console: Output) -> None:
    from .plot import save_ratios

    if not save_ratios(path, findings.results, f"{about['name']}, torch {about['torch']}"):
        say(console, "no plot: there is no ratio")
        return
    say(console, f"plot: {path}")


def _leave(findings: Findings) -> None:
    """With an exit code: a wrong answer of anyone and a failure of ours are the command's own."""
    if findings.interrupted:
        raise typer.Exit(INTERRUPTED)
    outcomes = [item for result in findings.results for item in result.outcomes.items()]
    if any(outcome.wrong or (outcome.failed and key[0] == OURS) for key, outcome in outcomes):
        raise typer.Exit(FAILED)
