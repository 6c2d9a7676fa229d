"""`throughtime bench`: measures a suite, then writes and shows the results."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

import throughtime as tt

from ..errors import FAILED, INTERRUPTED
from ..options import with_options
from ..output import Output, check_new_file, check_plot_path, progress, save_json, say
from .case import NotMeasured
from .layers.cpu import CpuSuite
from .layers.cuda import CudaSuite
from .measure import measure
from .options import Options
from .report import document, lines, tables
from .result import Result
from .steps.suite import StepSuite
from .suite import Suite


@dataclass
class Findings:
    """Results so far, and the cases that could not be measured."""

    results: list[Result] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    measured: int = 0  # cases
    interrupted: bool = False


@with_options
def bench(options: Options) -> None:
    """Measure training steps on this machine: throughtime and other frameworks, in turn, same weights and data.

    A step is forward, then backward of a random gradient, with gradients of the input and all parameters; ours has
    dL/dh_t and dL/dc_t of every timestep as well. Every answer is checked against float64 before anything is timed.
    Times are medians of the rounds, the ratio is the median of each round's. Close other programs first.
    With --step, whole training programs are compared with torch.nn instead, on the CPU.
    """
    if options.json is not None:
        check_new_file("--json", options.json, options.force)
    if options.plot is not None:
        check_plot_path(options.plot)
        check_new_file("--plot", options.plot, options.force)
    kind = StepSuite if options.step else CudaSuite if options.on_gpu else CpuSuite
    suite: Suite = kind(options)
    console = Output(None if sys.stdout.isatty() else suite.width)
    machine = suite.prepare(console)
    findings = run(suite, console)
    suite.settle(machine)
    try:
        if options.json is not None:
            save_json(options.json, document(suite, findings.results, findings.skipped, findings.interrupted, machine))
    finally:  # if one of the two fails, there is still the other
        report(suite, findings, machine, console)
    if options.json is not None:
        say(console, f"JSON: {options.json}")
    if options.plot is not None:
        _plot(options.plot, suite, findings.results, machine, console)
    _exit(suite, findings)


def run(suite: Suite, console: Output) -> Findings:
    """Measure all cases; Ctrl-C ends the loop and keeps the results so far."""
    findings = Findings()
    try:
        with progress(sum(case.parts(suite.rounds) for case in suite.cases), console) as advance:
            for case in suite.cases:
                try:
                    findings.results += measure(case, suite.rounds, functools.partial(advance, str(case)))
                    findings.measured += 1
                except NotMeasured as error:
                    findings.skipped.append(f"not measured: {case}: {error}")
    except KeyboardInterrupt:
        findings.interrupted = True
    finally:
        tt.set_matmul_precision("highest")
    return findings


def report(suite: Suite, findings: Findings, machine: dict[str, Any], console: Output) -> None:
    """Tables, then lines."""
    if findings.results:
        console.print(*tables(suite, findings.results, machine, console))
    for line in (*findings.skipped, *lines(findings.results), *suite.remarks(findings.results, machine)):
        say(console, line)
    if findings.interrupted:
        say(console, f"interrupted after {findings.measured} of {len(suite.cases)}")


def _plot(path: Path, suite: Suite, results: list[Result], machine: dict[str, Any], console: Output) -> None:
    from .plot import ratio_panels, save_ratio_figure

    panels = ratio_panels(results)
    if not panels:
        say(console, suite.no_plot)
        return
    save_ratio_figure(path, panels, suite.title(machine), suite.axis)
    say(console, f"plot: {path}")


def _exit(suite: Suite, findings: Findings) -> None:
    """Exit with a code: wrong answers fail the command, and so do failures of contenders that may not fail."""
    if findings.interrupted:
        raise typer.Exit(INTERRUPTED)
    outcomes = [item for result in findings.results for item in result.outcomes.items()]
    failed = any(outcome.wrong or (outcome.failed and not suite.may_fail(name)) for name, outcome in outcomes)
    if failed or findings.skipped:
        raise typer.Exit(FAILED)
