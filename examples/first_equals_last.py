"""Is the first symbol of a sequence equal to the last one? XOR, stretched over time.

RNN, GRU and LSTM read N random bits and answer at the end. The bits in between are noise, so a network must remember
the first bit for N - 1 steps before it is of any use. The bias of the gate that keeps the state (forget gate of the
LSTM, update gate of the GRU) starts at 0, at 1, or as "chrono" initialisation draws it for memories of up to N steps.
The table also has the share of the gradient that reached the first step before training.

    python examples/first_equals_last.py --plot first_equals_last.png
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from common import Plot, Seed, Steps, run_command
from sequences import (
    CAPTION,
    Batch,
    Cell,
    Classification,
    Hidden,
    Run,
    Size,
    legend_below,
    line_style,
    literature,
    train,
)
from throughtime.cli.output import check_plot_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

_ENOUGH = 2000  # consecutive right sequences end a training, as in Hochreiter and Schmidhuber's experiment 4
_TEST = 2560  # sequences, as in that experiment
_LEARNT = 0.99  # share of right answers
CELLS = {
    "RNN, default": Cell("RNN", lr=1e-3, weights="torch"),
    "RNN, orthogonal": Cell("RNN", lr=1e-3, input_deviation=0.1),
    "GRU, bias 0": Cell("GRU", lr=3e-3),
    "GRU, chrono": Cell("GRU", lr=3e-3, keep="chrono"),
    "LSTM, bias 0": Cell("LSTM", lr=3e-3),
    "LSTM, bias 1": Cell("LSTM", lr=3e-3, keep=1.0),
    "LSTM, chrono": Cell("LSTM", lr=3e-3, keep="chrono"),
}


@dataclass(frozen=True)
class FirstEqualsLast(Classification):
    """`steps` symbols, one-hot; class 1 if the first equals the last, which is so for half of the sequences."""

    steps: int
    symbols: int
    outputs: int = 2

    @property
    def inputs(self) -> int:
        """One feature per symbol."""
        return self.symbols

    def batch(self, rng: np.random.Generator, count: int) -> Batch:
        """Random symbols; the last one is redrawn so that the classes are equally frequent."""
        ids = rng.integers(0, self.symbols, (self.steps, count))
        equal = rng.integers(0, 2, count)
        other = (ids[0] + rng.integers(1, self.symbols, count)) % self.symbols
        ids[-1] = np.where(equal, ids[0], other)
        return Batch(np.eye(self.symbols, dtype=np.float32)[ids], equal)


def main(
    length: Annotated[list[int], typer.Option(min=2, help="Symbols of a sequence.")] = [20, 50, 100, 200],  # noqa: B006
    symbols: Annotated[int, typer.Option(min=2, help="Different symbols.")] = 2,
    hidden: Hidden = 64,
    steps: Steps = 2000,
    batch: Size = 64,
    seed: Seed = 0,
    plot: Plot = None,
) -> None:
    """Train each cell on each length until 2000 consecutive sequences are right, or for --steps updates."""
    if plot is not None:
        check_plot_path(plot)
    runs: dict[int, dict[str, Run]] = {}
    for count in length:
        task = FirstEqualsLast(count, symbols)
        test = task.batch(np.random.default_rng([seed, 2]), _TEST)
        sizes: dict[str, Any] = {
            "hidden": hidden,
            "steps": count,
            "updates": steps,
            "size": batch,
            "seed": seed,
            "enough": _ENOUGH,
        }
        runs[count] = {
            name: train(cell, task, test, f"{count} symbols, {name}", **sizes) for name, cell in CELLS.items()
        }
    console = Console()
    console.print(table(runs))
    console.print(literature("What others report", reported(runs)))
    if plot is not None:
        save_figure(plot, runs)


def table(runs: Mapping[int, Mapping[str, Run]]) -> Table:
    """One row per length and cell."""
    table = Table(title="Is the first symbol the last one?", caption=CAPTION)
    table.add_column("symbols", justify="right")
    table.add_column("cell", no_wrap=True)
    for column in ("before", "after", "updates", "right, %", "seconds"):
        table.add_column(column, justify="right")
    for count, by_name in runs.items():
        table.add_section()
        for name, run in by_name.items():
            figures = (str(run.updates), f"{100 * run.right:.1f}", f"{run.seconds:.1f}")
            table.add_row(str(count), name, f"{run.before[0]:.1f}", f"{run.after[0]:.1f}", *figures)
    return table


def reported(runs: Mapping[int, Mapping[str, Run]]) -> list[tuple[str, str, str]]:
    """Figures from the literature for similar tasks."""

    def reach(name: str) -> str:
        solved = [count for count, by_name in runs.items() if by_name[name].right > _LEARNT]
        return f"{name}: learnt {', '.join(map(str, solved)) if solved else 'none'}"

    return [
        (
            "Bengio et al. 1994",
            "a plain network that latches a bit against noise has gradients that vanish exponentially with its age",
            f"{reach('RNN, default')}; {reach('RNN, orthogonal')}",
        ),
        (
            "Hochreiter & Schmidhuber 1997, experiment 3a",
            "the first input determines one of two classes, noise after it, T = 100: LSTM without forget gate learns "
            "it in 64,330 sequences; T = 1000, three such inputs: 452,460",
            reach("LSTM, chrono"),
        ),
        (
            "Gers et al. 2000; Jozefowicz et al. 2015",
            "forget gates should start open, with a bias of 1; else the LSTM seems unable to learn long dependencies",
            f"{reach('LSTM, bias 0')}; {reach('LSTM, bias 1')}",
        ),
        (
            "Tallec & Ollivier 2018",
            "biases drawn for the memories needed (chrono) learn dependencies of hundreds of steps better than 1 does",
            f"{reach('LSTM, chrono')}; {reach('GRU, bias 0')}; {reach('GRU, chrono')}",
        ),
    ]


def save_figure(path: Path, runs: Mapping[int, Mapping[str, Run]]) -> None:
    """Left: right answers and updates. Right: the gradient at the first step before training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    figure.suptitle("Is the first symbol of a sequence the last one?")
    left, right = figure.subplots(1, 2)
    _draw_shares(left, runs)
    for index, name in enumerate(CELLS):
        style = line_style(index)
        gradients = {count: by_name[name].before[0] for count, by_name in runs.items()}
        learnt = {count: log10 for count, log10 in gradients.items() if runs[count][name].right > _LEARNT}
        right.plot(list(gradients), list(gradients.values()), label=name, **style)
        right.plot(list(learnt), list(learnt.values()), **{**style, "linestyle": "", "fillstyle": "full"})
    right.set(
        title="Gradient at the first step, before training (filled: learnt)",
        xlabel="symbols of a sequence",
        ylabel="log10 of the norm of dL/dh over that at the last step",
    )
    right.set_xticks(list(runs))
    right.grid(alpha=0.3)
    legend_below(figure, right)
    figure.savefig(path, dpi=90)


def _draw_shares(axes: Axes, runs: Mapping[int, Mapping[str, Run]]) -> None:
    shares = np.array([[100 * by_name[name].right for by_name in runs.values()] for name in CELLS])
    axes.imshow(shares, cmap="Greys", vmin=30, vmax=180, aspect="auto")  # light enough for black text
    for row, name in enumerate(CELLS):
        for column, by_name in enumerate(runs.values()):
            text = f"{shares[row, column]:.1f} %\n{by_name[name].updates} updates"
            axes.text(column, row, text, ha="center", va="center", fontsize=9)
    axes.set(title="Test sequences answered right (50 %: guessing)", xlabel="symbols of a sequence")
    axes.set_xticks(range(len(runs)), [str(count) for count in runs])
    axes.set_yticks(range(len(CELLS)), list(CELLS))


if __name__ == "__main__":
    run_command(main)
