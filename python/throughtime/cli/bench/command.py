"""The command itself: its options, checked; what it measures; what it writes."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

import throughtime as tt

from ..errors import FAILED, INTERRUPTED, fail
from ..options import Force, pick
from ..output import Output, check_new_file, check_plot_path, progress, save_json, say
from .contenders import FRAMEWORKS, INSTALL, OURS, Maker, load
from .cuda import command as cuda
from .cuda.command import PRECISIONS
from .machine import machine, machine_peak, versions
from .measure import Result, Tick, measure, measure_memory, measure_modes
from .problems import CELLS, DEFAULT, PROBLEMS, Problem, Task
from .report import as_data, modes_table, remarks, tables, wrong_answers
from .steps import command as steps

_DEVICES = ("cpu", "cuda")
_MODES = ("full", "states", "checkpoint")
_WIDTH = 140  # of a table that goes into a file


@dataclass
class Plan:
    """What is to be measured, and by whom."""

    problems: dict[str, Problem]
    cells: list[str]
    precisions: list[str]
    makers: dict[str, Maker]
    threads: int
    rounds: int
    modes: list[str] = field(default_factory=lambda: ["full"])
    with_memory: bool = True

    def tasks(self) -> Iterator[tuple[str, Task, str]]:
        """Problem, its task, precision."""
        for name, problem in self.problems.items():
            for cell in (cell for cell in self.cells if cell in problem.cells):
                for precision in self.precisions:
                    yield name, Task(problem, cell), precision

    def compares_modes(self, problem: Problem) -> bool:
        """Of whole steps only, and where a mode is left to choose."""
        return self.modes != ["full"] and not problem.last and not problem.lean

    def parts(self, problem: Problem) -> int:
        """What the bar counts: the check and the rounds, of memory modes as well, and peak memory."""
        return (1 + self.rounds) * (1 + self.compares_modes(problem)) + self.with_memory


@dataclass
class Findings:
    """What was measured so far, and what could not be."""

    results: list[Result] = field(default_factory=list)
    modes: list[Result] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False


def bench(
    against: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Contenders: {', '.join(FRAMEWORKS)}; with --step {', '.join(steps.AGAINST)}; "
            f"on a GPU {', '.join(cuda.RECURRENT)}.",
            metavar="NAME ...",
            show_default="torch; cudnn",
        ),
    ] = None,
    problems: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Some of {', '.join(PROBLEMS)}; with --step {', '.join(steps.PROBLEMS)}; "
            f"on a GPU {', '.join(cuda.PROBLEMS)}.",
            metavar="NAME ...",
            show_default="all but million; all; all but mark",
        ),
    ] = None,
    cells: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Some of {', '.join(CELLS)}; with --step {', '.join(steps.CELLS)}.",
            metavar="NAME ...",
            show_default="all",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Of every contender.", show_default="the library's")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 7,
    precision: Annotated[
        list[str] | None,
        typer.Option(help=f"Of our products: {', '.join(PRECISIONS)}.", metavar="NAME ...", show_default="highest"),
    ] = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Our memory modes to compare: {', '.join(_MODES)}.", metavar="NAME ...", show_default="full"
        ),
    ] = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure peak memory.")] = False,
    json: Annotated[Path | None, typer.Option(help="Where everything goes as JSON.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Where a plot of the ratios goes.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help=f"{' or '.join(_DEVICES)}.", metavar="NAME")] = "cpu",
    types: Annotated[
        list[str] | None,
        typer.Option(help=f"On a GPU: {', '.join(cuda.TYPES)}.", metavar="NAME ...", show_default="all"),
    ] = None,
    step: Annotated[
        bool,
        typer.Option(
            "--step", help="Whole training steps of small models: forward, loss, backward, clip_grad_norm, Adam."
        ),
    ] = False,
    beside: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="With --step: compare all threads with one, beside so many busy processes.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Measure training steps on this machine: throughtime and other frameworks, in turn, same weights and data.

    A step is forward, then backward of a random gradient, with gradients of the input and all parameters; ours has
    dL/dh_t and dL/dc_t of every timestep as well. Every answer is checked against float64 before anything is timed.
    Times are medians of the rounds, the ratio is the median of each round's. Close other programs first.
    With --step, whole training programs are compared with torch.nn instead, on the CPU.
    """
    on_gpu = pick("--device", [device], _DEVICES, ()) == ["cuda"]
    if json is not None:
        check_new_file("--json", json, force)
    if plot is not None:
        check_plot_path(plot)
        check_new_file("--plot", plot, force)
    if step:
        _only("with --device cuda", {"--types": types})
        gpu = "cuda" if on_gpu else None
        _only("without --step", {"--precision": precision, "--memory": memory, "--device cuda": gpu})
        steps.bench_steps(steps.Request(against, problems, cells, threads, rounds, beside, not no_memory, json, plot))
        return
    _only("with --step", {"--beside": beside})
    if on_gpu:
        _only("with --device cpu", {"--threads": threads, "--memory": memory, "--no-memory": no_memory})
        cuda.bench_cuda(cuda.Request(against, problems, cells, types, precision, rounds, json, plot))
        return
    _only("with --device cuda", {"--types": types})
    names = pick("--against", against, tuple(FRAMEWORKS), ("torch",))
    chosen = pick("--problems", problems, tuple(PROBLEMS), DEFAULT)
    some_cells = pick("--cells", cells, tuple(CELLS), tuple(CELLS))
    precisions = pick("--precision", precision, PRECISIONS, ("highest",))
    modes = pick("--memory", memory, _MODES, ("full",))
    if not any(set(some_cells) & set(PROBLEMS[name].cells) for name in chosen):
        fail(f"--cells {' '.join(some_cells)}: none of the problems {', '.join(chosen)} has such a cell")
    console = Output(None if sys.stdout.isatty() else _WIDTH)
    count = threads or tt.get_num_threads()
    plan = Plan(
        problems={name: PROBLEMS[name] for name in chosen},
        cells=some_cells,
        precisions=precisions,
        makers=_makers(names, count, console),
        threads=count,
        rounds=rounds,
        modes=modes,
        with_memory=not no_memory,
    )
    about = machine()
    findings = run(plan, console)
    peak_after = machine_peak()  # other programs may have disturbed the first
    about["peak_float32_flops"] = max(about["peak_float32_flops"], peak_after)
    try:
        if json is not None:
            save_json(json, document(plan, findings, about))
    finally:  # where one of the two fails, there is still the other
        report(plan, findings, about, console)
    if json is not None:
        say(console, f"JSON: {json}")
    if plot is not None:
        _plot(plot, findings.results, about, plan, console)
    if findings.interrupted:
        raise typer.Exit(INTERRUPTED)
    if wrong_answers(findings.results + findings.modes):
        raise typer.Exit(FAILED)


def run(plan: Plan, console: Output) -> Findings:
    """Measure what is planned. Ctrl-C ends it with what there is."""
    findings = Findings()
    total = sum(plan.parts(task.problem) for _, task, _ in plan.tasks())
    try:
        with progress(total, console) as advance:
            for name, task, precision in plan.tasks():
                tt.set_matmul_precision(precision)
                _measure_one(plan, findings, name, task, precision, functools.partial(advance, f"{name} {task.cell}"))
    except KeyboardInterrupt:
        findings.interrupted = True
    finally:
        tt.set_matmul_precision("highest")
    return findings


def report(plan: Plan, findings: Findings, about: dict[str, Any], console: Output) -> None:
    """Tables, then lines."""
    if findings.results:
        peak = about["peak_float32_flops"]
        console.print(*tables(findings.results, peak, _title(plan, about), _caption(plan, about), console))
    if findings.modes:
        console.print(modes_table(findings.modes))
    for line in (*findings.skipped, *wrong_answers(findings.results + findings.modes), *remarks(findings.results)):
        say(console, line)
    if findings.interrupted:
        say(console, f"interrupted after {len(findings.results)} of {len(list(plan.tasks()))}")


def document(plan: Plan, findings: Findings, about: dict[str, Any]) -> dict[str, Any]:
    """Everything, as JSON has it."""
    packages = dict.fromkeys(FRAMEWORKS[name] for name in plan.makers if name != OURS)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(packages),
        "machine": about,
        "threads": plan.threads,
        "rounds": plan.rounds,
        "results": [as_data(result) for result in findings.results],
        "memory_modes": [as_data(result, base="full") for result in findings.modes],
        "skipped": findings.skipped,
    }


def _measure_one(plan: Plan, findings: Findings, name: str, task: Task, precision: str, tick: Tick) -> None:
    makers = {OURS: plan.makers[OURS]} if task.problem.lean else plan.makers
    result = measure(name, task, makers, precision, plan.rounds, tick)
    findings.results.append(result)
    if plan.with_memory:
        findings.skipped += measure_memory(result, plan.threads)
        tick()
    if plan.compares_modes(task.problem):
        findings.modes.append(measure_modes(name, task, ["full", *plan.modes], precision, plan.rounds, tick))


def _only(where: str, options: dict[str, object]) -> None:
    """Fail where one of these was given that has a meaning there alone."""
    for name, given in options.items():
        if given:
            fail(f"{name}: only {where}")


def _makers(names: Sequence[str], threads: int, console: Output) -> dict[str, Maker]:
    """Ours, and those of the frameworks that are there."""
    makers = {OURS: load(OURS, threads)}
    for name in names:
        try:
            makers[name] = load(name, threads)
        except ImportError:
            package = FRAMEWORKS[name]
            say(console, f"{package} is not installed: {INSTALL[package]}")
    return makers


def _title(plan: Plan, about: dict[str, Any]) -> str:
    threads = f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
    return f"Training steps, float32: {about['cpu']}, {about['instruction_set']}, {threads}"


def _caption(plan: Plan, about: dict[str, Any]) -> str:
    parts = [
        f"ms: median of {plan.rounds} rounds in turn; ratio: median of the rounds' theirs / ours; error: largest of "
        "the output and all gradients, relative to float64, root mean square; peak MB: of a step, above its inputs; "
        f"% of peak: ours, of the {about['peak_float32_flops'] / 1e9:.0f} GFLOP/s that multiply-adds in registers reach"
    ]
    if any(problem.last for problem in plan.problems.values()):
        parts.append("vanishing: the backward alone, loss on the last step only")
    if "jax" in plan.makers:
        parts.append("jax: XLA has no switch for threads, its pool is bounded by NPROC")
    return "; ".join(parts)


def _plot(path: Path, results: Sequence[Result], about: dict[str, Any], plan: Plan, console: Output) -> None:
    from .plot import ratio_panels, save_ratio_figure

    panels = ratio_panels(results)
    if not panels:
        say(console, "no plot: there is no ratio without a contender")
        return
    save_ratio_figure(path, panels, _title(plan, about))
    say(console, f"plot: {path}")
