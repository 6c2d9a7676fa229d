"""`throughtime bench --step`: checks its options, measures, writes the results."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import os
import statistics
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
from ..contenders import INSTALL
from ..machine import machine, versions
from .contenders import AGAINST, MODULES, NUMPY, TORCH
from .load import BusyProcessEnded, busy_reasons, calibration_spread, load
from .measure import Result, Settings, measure
from .problems import PROBLEMS, Task, tasks
from .remote import WorkerError
from .report import as_data, beside_table, steps_table, troubles
from .worker import STEPS, WARM

CELLS = ("LSTM", "GRU")
_WIDTH = 140  # of a table that goes into a file
# Prefixes of environment variables that change speed; those that are set are reported.
_TUNING = (
    *("ATEN_", "DNNL_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_"),
    *("THROUGHTIME_", "TORCH"),
)


class Request(NamedTuple):
    """The command's options as they were given."""

    against: Sequence[str] | None
    problems: Sequence[str] | None
    cells: Sequence[str] | None
    threads: int | None
    rounds: int
    beside: int | None
    with_memory: bool
    json: Path | None
    plot: Path | None


@dataclass
class Findings:
    """Results so far, the machine, and problems that could not be measured."""

    about: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False


def bench_steps(request: Request) -> None:
    """Measure whole training steps: first answers against torch.nn in float64, then blocks in turn."""
    chosen = _tasks(request)
    settings = _settings(request)
    if importlib.util.find_spec("torch") is None:
        fail(f"--step compares with torch, which is not installed: {INSTALL['torch']}")
    console = Output(None if sys.stdout.isatty() else _WIDTH)
    findings = Findings(_about())
    run(chosen, settings, findings, console)
    findings.about["load_after"] = load()
    try:
        if request.json is not None:
            save_json(request.json, document(settings, findings))
    finally:  # where one of the two fails, there is still the other
        report(settings, findings, console)
    if request.json is not None:
        say(console, f"JSON: {request.json}")
    if request.plot is not None:
        _plot(request.plot, settings, findings, console)
    if findings.interrupted:
        raise typer.Exit(INTERRUPTED)
    if findings.skipped or any(result.failing for result in findings.results):
        raise typer.Exit(FAILED)


def run(chosen: Sequence[tuple[str, Task]], settings: Settings, findings: Findings, console: Output) -> None:
    """Measure these tasks; Ctrl-C ends the loop and keeps the results so far."""
    parts = 1 + settings.rounds + settings.with_memory
    try:
        with progress(parts * len(chosen), console) as advance:
            for name, task in chosen:
                tick = functools.partial(advance, f"{name} {task.cell}")
                try:
                    findings.results.append(measure(name, task, settings, tick))
                except (BusyProcessEnded, WorkerError) as error:
                    findings.skipped.append(f"not measured: {name} {task.cell}: {error}")
    except KeyboardInterrupt:
        findings.interrupted = True


def report(settings: Settings, findings: Findings, console: Output) -> None:
    """The table, then lines."""
    if findings.results:
        draw = beside_table if settings.beside else steps_table
        console.print(draw(findings.results, settings, _title(settings, findings), _caption(settings)))
    about = findings.about
    say(
        console,
        f"load {about['load_before']:.2f} before, {about['load_after']:.2f} after, this command included",
    )
    if about["environment"]:
        say(console, "set in the environment: " + " ".join(f"{k}={v}" for k, v in about["environment"].items()))
    for line in (*findings.skipped, *troubles(findings.results)):
        say(console, line)
    if findings.interrupted:
        say(console, f"interrupted after {len(findings.results)} problems")


def document(settings: Settings, findings: Findings) -> dict[str, Any]:
    """All results as plain data."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(["torch"]),
        "machine": findings.about,
        "threads": settings.threads[-1],
        "rounds": settings.rounds,
        "block": {"warm_up_steps": WARM, "steps": STEPS},
        "beside": settings.beside,
        "results": [as_data(result, settings) for result in findings.results],
        "skipped": findings.skipped,
        "interrupted": findings.interrupted,
    }


def _tasks(request: Request) -> list[tuple[str, Task]]:
    names = pick("--problems", request.problems, tuple(PROBLEMS), tuple(PROBLEMS))
    cells = pick("--cells", request.cells, CELLS, CELLS)
    chosen = list(tasks({name: PROBLEMS[name] for name in names}, cells))
    if not chosen:
        fail(f"--cells {' '.join(cells)}: none of the problems {', '.join(names)} has such a cell")
    return chosen


def _settings(request: Request) -> Settings:
    against = pick("--against", request.against, AGAINST, (TORCH,))
    threads = request.threads or tt.get_num_threads()
    if request.beside and threads == 1:
        fail(f"--beside {request.beside}: compares several threads with one, got --threads 1")
    return Settings(
        names=[MODULES, NUMPY, *(name for name in AGAINST if name in (TORCH, *against))],
        threads=[1, threads] if request.beside else [threads],
        rounds=request.rounds,
        beside=request.beside or 0,
        with_memory=request.with_memory and not request.beside,
    )


def _about() -> dict[str, Any]:
    """The machine, and how busy it is before this command does any work."""
    before = load()
    about = machine()
    spread = calibration_spread()
    return about | {
        "load_before": before,
        "calibration_spread": spread,
        "busy": busy_reasons(before, spread),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_TUNING)},
    }


def _title(settings: Settings, findings: Findings) -> str:
    about, threads = findings.about, settings.threads[-1]
    title = f"Whole training steps, float32: {about['cpu']}, {about['instruction_set']}, "
    title += f"{threads} thread{'s' if threads > 1 else ''}"
    if settings.beside:
        title += f", beside {settings.beside} busy process{'es' if settings.beside > 1 else ''}"
    if about["busy"]:
        return f"BUSY MACHINE, do not rely on these times: {'; '.join(about['busy'])}\n{title}"
    return title


def _caption(settings: Settings) -> str:
    blocks = (
        f"ms: median of {settings.rounds} blocks of {STEPS} steps, each after {WARM} untimed ones of its own, in turn; "
        "ratio: median of the rounds', with the lowest and the highest"
    )
    if settings.beside:
        return blocks
    return (
        f"{blocks}; peak MB: of model, data and steps, above the libraries; first step: with compiling, not in ms; "
        "error: the largest gradient's of the first step, relative to float64, root mean square"
    )


def _plot(path: Path, settings: Settings, findings: Findings, console: Output) -> None:
    from ..plot import Bar, Panel, save_ratio_figure

    panels = []
    for name in (name for name in settings.names if name != TORCH):
        ratios = [(result, result.ratios(name, settings.threads[-1])) for result in findings.results]
        bars = [Bar(result.name, result.task.cell, statistics.median(found)) for result, found in ratios if found]
        if bars:
            panels.append(Panel(name, f"time of torch.nn / time of {name} (log scale)", bars))
    if not panels:
        say(console, "no plot: there is no ratio to torch.nn")
        return
    save_ratio_figure(path, panels, _title(settings, findings))
    say(console, f"plot: {path}")
