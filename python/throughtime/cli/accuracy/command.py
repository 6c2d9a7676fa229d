"""`throughtime accuracy`: measures errors, then writes and shows them."""

from __future__ import annotations

import sys

import typer

from ..errors import FAILED, INTERRUPTED
from ..options import with_options
from ..output import Output, check_new_file, progress, save_json, say
from .findings import Findings
from .measure import Plan, measure
from .options import Options
from .report import about, document, grids, header, notes
from .worker import Workers

_WIDTH = 160  # of a table in a file


@with_options
def accuracy(options: Options) -> None:
    """Measure rounding errors on this machine, as tables for a report.

    Functions are compared with exact values (50 digits) if mpmath is installed (pip install mpmath), else float32 with
    float64. Kernels, forward and backward, are compared with float64. Both run at every instruction set that the
    machine supports, in float32 and float64 and each precision of products, on uniform, lognormal and Cauchy inputs.
    The exit code is 1 if an error exceeds its bound or is not finite.
    """
    if options.json is not None:
        check_new_file("--json", options.json, options.force)
    plan, levels = options.plan(), options.chosen_levels()
    console = Output(None if sys.stdout.isatty() else _WIDTH)
    machine = about(levels)
    findings = run(plan, levels, console)
    try:
        if options.json is not None:
            save_json(options.json, document(plan, findings, machine))
    finally:  # if one of the two fails, there is still the other
        say(console, header(machine, plan))
        report(plan, findings, console, options.markdown or not console.is_terminal)
    if options.json is not None:
        say(console, f"JSON: {options.json}")
    if findings.interrupted:
        raise typer.Exit(INTERRUPTED)
    if findings.excesses or findings.failed:
        raise typer.Exit(FAILED)


def run(plan: Plan, levels: list[str], console: Output) -> Findings:
    """Measure everything; Ctrl-C ends it and keeps the findings so far."""
    findings = Findings(missing=_missing(plan, levels))
    try:
        with Workers.start(levels) as workers:
            findings.failed = workers.failed
            with progress(plan.parts, console) as advance:
                measure(plan, workers, findings, advance)
    except KeyboardInterrupt:
        findings.interrupted = True
    return findings


def _missing(plan: Plan, levels: list[str]) -> list[str]:
    """What this plan cannot measure, and why."""
    said = []
    if plan.functions and len(plan.function_types) < len(plan.types):
        said.append("functions in float64: they need mpmath, which is not installed: pip install mpmath")
    if plan.kernels and "float64" in plan.types and len(levels) == 1:
        said.append(f"kernels in float64: they are compared between levels, but only {levels[0]} takes part")
    return said


def report(plan: Plan, findings: Findings, console: Output, markdown: bool) -> None:
    """Tables, then notes."""
    for grid in grids(plan, findings):
        if markdown:
            for line in ("", *grid.markdown()):
                say(console, line)
        else:
            console.print(grid.table())
    for note in notes(plan, findings):
        if markdown:
            say(console, "")
        say(console, note)
    if findings.interrupted:
        say(console, "interrupted: findings are missing")
