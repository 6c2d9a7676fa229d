"""Hochreiter and Schmidhuber's adding problem: the sum of two numbers, marked among hundreds.

As in experiment 4 of their paper on the LSTM (1997): each step has a number from [-1, 1] and a marker, sequences have
between T and T + T/10 steps, the first mark is among the first ten, the second in the first half, and the target is
0.5 + (X1 + X2) / 4; an answer is right if its error is below 0.04. The table compares RNN, GRU and LSTM with the
constant answer 0.5 and with the figures of the paper.

    python examples/adding_problem.py --plot adding_problem.png
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import throughtime as tt
from common import SPAN, Plot, Seed, Steps, run_command
from sequences import CAPTION, Batch, Cell, Hidden, Run, Size, legend_below, line_style, literature, train
from throughtime.cli.output import check_plot_path

Array = NDArray[Any]

_TOLERANCE = 0.04
_FIRST = 10  # pairs among which the first mark is
_ENOUGH = 2000  # consecutive sequences answered right end a training
_TEST = 2560  # sequences
CELLS = {
    "RNN, orthogonal": Cell("RNN", lr=1e-3, input_deviation=0.1),
    "IRNN": Cell("IRNN", lr=1e-3, weights="identity", input_deviation=0.1),
    "GRU, chrono": Cell("GRU", lr=5e-3, keep="chrono"),
    "LSTM, bias 1": Cell("LSTM", lr=5e-3, keep=1.0),
    "LSTM, chrono": Cell("LSTM", lr=5e-3, keep="chrono"),
}
# Hochreiter and Schmidhuber (1997), table 7, means of 10 trials: by T, sequences learnt from, and wrong ones of 2560.
REPORTED = {100: (74_000, 1), 500: (209_000, 0), 1000: (853_000, 1)}


@dataclass(frozen=True)
class Adding:
    """Sequences of between `steps` and 1.1 `steps` steps."""

    steps: int
    inputs: int = 2
    outputs: int = 1

    def batch(self, rng: np.random.Generator, count: int) -> Batch:
        """Numbers and markers: 1 for a number to be added, -1 on the first and the last step, whose numbers count 0."""
        longest, each = self.steps + self.steps // 10, np.arange(count)
        lengths = rng.integers(self.steps, longest + 1, count)
        numbers, markers = rng.uniform(-1, 1, (longest, count)), np.zeros((longest, count))
        first = rng.integers(0, _FIRST, count)
        second = rng.integers(0, self.steps // 2 - 2, count)
        second += second >= first  # among the unmarked pairs of the first half
        markers[first, each] = markers[second, each] = 1
        markers[0] = markers[lengths - 1, each] = -1
        total = np.where(markers == 1, numbers, 0).sum(axis=0)
        x = np.stack([numbers, markers], axis=2).astype(np.float32)
        return Batch(x, (0.5 + total / 4).astype(np.float32)[:, None], lengths)

    def loss(self, output: Array, target: Array) -> tuple[float, Array]:
        """The mean squared error."""
        return tt.mse(output, target)

    def right(self, output: Array, target: Array) -> Array:
        """Whether the error of each answer is below 0.04."""
        near: Array = np.abs(output - target)[:, 0] < _TOLERANCE
        return near


def main(
    length: Annotated[list[int], typer.Option(min=20, help="T, the shortest sequence's steps.")] = [100, 500],  # noqa: B006
    hidden: Hidden = 64,
    steps: Steps = 2500,
    batch: Size = 32,
    seed: Seed = 0,
    plot: Plot = None,
) -> None:
    """Train each cell on each length until 2000 consecutive sequences are right, or for --steps updates."""
    if plot is not None:
        check_plot_path(plot)
    runs: dict[int, dict[str, Run]] = {}
    tests = {}
    for shortest in length:
        task = Adding(shortest)
        test = tests[shortest] = task.batch(np.random.default_rng([seed, 2]), _TEST)
        sizes: dict[str, Any] = {
            "hidden": hidden,
            "steps": shortest,
            "updates": steps,
            "size": batch,
            "seed": seed,
            "enough": _ENOUGH,
        }
        runs[shortest] = {
            name: train(cell, task, test, f"T = {shortest}, {name}", **sizes) for name, cell in CELLS.items()
        }
    console = Console()
    console.print(table(runs, tests))
    console.print(literature("What others report", reported(runs)))
    if plot is not None:
        save_figure(plot, runs, tests)


def constant(test: Batch) -> tuple[float, float]:
    """The share of right answers and the mean squared error of the constant answer 0.5."""
    task, output = Adding(len(test.x)), np.full_like(test.target, 0.5)
    return float(task.right(output, test.target).mean()), task.loss(output, test.target)[0]


def table(runs: Mapping[int, Mapping[str, Run]], tests: Mapping[int, Batch]) -> Table:
    """One row per length and cell, one for the constant answer 0.5, and one for the reported figures."""
    table = Table(title="The adding problem", caption=CAPTION)
    table.add_column("T", justify="right")
    table.add_column("cell", no_wrap=True)
    for column in ("before", "after", "learnt from", "right, %", "squared error, 1e-3", "time, s"):
        table.add_column(column, justify="right")
    for shortest, by_name in runs.items():
        table.add_section()
        share, error = constant(tests[shortest])
        table.add_row(str(shortest), "always 0.5", "", "", "0", f"{100 * share:.2f}", f"{1000 * error:.3f}", "")
        for name, run in by_name.items():
            error = tt.mse(run.output, tests[shortest].target)[0]
            figures = (str(run.sequences), f"{100 * run.right:.2f}", f"{1000 * error:.3f}", f"{run.seconds:.1f}")
            table.add_row(str(shortest), name, f"{run.before[0]:.1f}", f"{run.after[0]:.1f}", *figures)
        if shortest in REPORTED:
            sequences, wrong = REPORTED[shortest]
            table.add_row(
                str(shortest), "LSTM of 1997", "", "", str(sequences), f"{100 * (1 - wrong / 2560):.2f}", "", ""
            )
    return table


def reported(runs: Mapping[int, Mapping[str, Run]]) -> list[tuple[str, str, str]]:
    """Figures from the literature."""

    def ended(name: str) -> str:
        return f"{name}: " + "; ".join(
            f"T = {shortest}, {100 * by_name[name].right:.2f} % after {by_name[name].sequences}"
            for shortest, by_name in runs.items()
        )

    table_7 = "; ".join(f"T = {t}, {wrong} of 2560 wrong after {count}" for t, (count, wrong) in REPORTED.items())
    return [
        (
            "Hochreiter & Schmidhuber 1997, table 7",
            f"LSTM of 4 cells without forget gates, one sequence per update: {table_7} sequences, once the last "
            "2000 were right and the mean training error was below 0.01",
            ended("LSTM, chrono"),
        ),
        (
            "Le et al. 2015",
            "another variant (numbers from [0, 1], their sum): IRNN and LSTM learn T = 150 to 300, T = 400 is hard for "
            "both; plain RNNs do not",
            f"{ended('IRNN')}. {ended('RNN, orthogonal')}",
        ),
    ]


def save_figure(path: Path, runs: Mapping[int, Mapping[str, Run]], tests: Mapping[int, Batch]) -> None:
    """The share of right answers against the number of training sequences, a panel for each length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5.5 * len(runs), 5.5), layout="constrained")
    figure.suptitle(f"The adding problem: answers off by less than {_TOLERANCE}")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (shortest, by_name) in zip(panels, runs.items(), strict=True):
        for index, (name, run) in enumerate(by_name.items()):
            ends = range(min(SPAN, run.updates), run.updates + 1, SPAN)
            shares = [100 * np.mean(run.shares[max(0, end - SPAN) : end]) for end in ends]
            every = max(1, math.ceil(len(ends) / 8))
            axes.plot(
                [end * run.size for end in ends],
                shares,
                label=name,
                markevery=(index * every // 5, every),
                **line_style(index),
            )
        axes.axhline(100 * constant(tests[shortest])[0], color="black", linewidth=0.8, label="always 0.5")
        axes.set(title=f"T = {shortest}", xlabel="sequences learnt from")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"training sequences right (%, mean of {SPAN} updates)")
    legend_below(figure, panels[0])
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    run_command(main)
