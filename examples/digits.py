"""Handwritten digits, read pixel by pixel: 64 steps of one number each.

RNN, GRU and LSTM learn scikit-learn's 1797 digits of 8 x 8 pixels, row after row, with the initial weights of torch and
with others; a fifth is held out. The baseline is a linear classifier that sees all pixels at once. The table has the
accuracy, and the share of the gradient that reached the first pixel before training.

    python examples/digits.py --plot digits.png
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import throughtime as tt
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

Array = NDArray[Any]

_HELD_OUT = 5  # one digit in five
_LINEAR_UPDATES = 1000
CELLS = {
    "RNN, default": Cell("RNN", lr=1e-3, weights="torch"),
    "RNN, orthogonal": Cell("RNN", lr=1e-3, input_deviation=0.1),
    "IRNN": Cell("IRNN", lr=1e-3, weights="identity", input_deviation=0.1),
    "GRU, default": Cell("GRU", lr=3e-3, weights="torch"),
    "GRU, chrono": Cell("GRU", lr=3e-3, keep="chrono"),
    "LSTM, default": Cell("LSTM", lr=3e-3, weights="torch"),
    "LSTM, chrono": Cell("LSTM", lr=3e-3, keep="chrono"),
}


@dataclass(frozen=True)
class Digits(Classification):
    """Training images (N, 64), brightness from 0 to 1, and the digit that each shows (N,)."""

    images: Array
    labels: Array
    inputs: int = 1
    outputs: int = 10

    def batch(self, rng: np.random.Generator, count: int) -> Batch:
        """Random images."""
        chosen = rng.integers(0, len(self.labels), count)
        return pixels(self.images[chosen], self.labels[chosen])


def pixels(images: Array, labels: Array) -> Batch:
    """Images (N, 64) as sequences (64, N, 1)."""
    return Batch(np.ascontiguousarray(images.T)[:, :, None], labels)


def load() -> tuple[Array, Array]:
    """The images (1797, 64), brightness from 0 to 1, and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit('the digits come with scikit-learn: pip install scikit-learn, or ".[examples]"') from None
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int64)


def split(images: Array, labels: Array, seed: int) -> tuple[Digits, Batch]:
    """The training set, and a random fifth held out."""
    order = np.random.default_rng([seed, 2]).permutation(len(labels))
    held_out, rest = np.split(order, [len(order) // _HELD_OUT])
    return Digits(images[rest], labels[rest]), pixels(images[held_out], labels[held_out])


def linear(task: Digits, test: Batch, seed: int) -> float:
    """The share of test digits that a linear classifier of whole images recognises."""
    layer, optimizer = tt.Linear(task.images.shape[1], task.outputs, seed=seed), tt.optim.Adam(lr=0.01)
    for _ in range(_LINEAR_UPDATES):
        tape = layer.forward(task.images)
        _, d_output = task.loss(tape.output, task.labels)
        optimizer.step(layer.parameters, tape.backward(d_output).parameters)
    images = np.ascontiguousarray(test.x[:, :, 0].T)
    return float(task.right(layer(images), test.target).mean())


def main(hidden: Hidden = 64, steps: Steps = 5000, batch: Size = 32, seed: Seed = 0, plot: Plot = None) -> None:
    """Train each cell on the digits' pixels, and a linear classifier on the whole images."""
    if plot is not None:
        check_plot_path(plot)
    task, test = split(*load(), seed)
    sizes: dict[str, Any] = {
        "hidden": hidden,
        "steps": len(test.x),
        "updates": steps,
        "size": batch,
        "seed": seed,
        "watch": True,
    }
    baseline = linear(task, test, seed)
    runs = {name: train(cell, task, test, name, **sizes) for name, cell in CELLS.items()}
    console = Console()
    console.print(table(runs, baseline))
    console.print(literature("What others report", reported(runs)))
    if plot is not None:
        save_figure(plot, runs, baseline)


def table(runs: Mapping[str, Run], baseline: float) -> Table:
    """One row per cell, and the linear classifier's."""
    table = Table(title="Handwritten digits, pixel by pixel", caption=CAPTION)
    table.add_column("cell", no_wrap=True)
    for column in ("before", "after", "training loss, nats", "held out, % right", "seconds"):
        table.add_column(column, justify="right")
    table.add_row("linear, whole image", "", "", "", f"{100 * baseline:.1f}", "")
    for name, run in runs.items():
        loss = f"{np.mean(run.losses[-100:]):.3f}"
        gradients = (f"{run.before[0]:.1f}", f"{run.after[0]:.1f}")
        table.add_row(name, *gradients, loss, f"{100 * run.right:.1f}", f"{run.seconds:.1f}")
    return table


def reported(runs: Mapping[str, Run]) -> list[tuple[str, str, str]]:
    """Figures from the literature for a larger set of digits."""
    return [
        (
            "Le et al. 2015",
            "pixel by pixel MNIST, which is another set: 28 x 28 pixels, 784 steps, 60,000 training digits; IRNN of "
            "100 units 97 %",
            f"IRNN {100 * runs['IRNN'].right:.1f} %, LSTM, chrono {100 * runs['LSTM, chrono'].right:.1f} %",
        )
    ]


def save_figure(path: Path, runs: Mapping[str, Run], baseline: float) -> None:
    """Left: the accuracy during training. Right: the gradient by step before training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    figure.suptitle("Handwritten digits of 8 x 8 pixels, pixel by pixel")
    left, right = figure.subplots(1, 2)
    for index, (name, run) in enumerate(runs.items()):
        style = line_style(index)
        left.plot(list(run.tests), [100 * share for share in run.tests.values()], label=name, **style)
        steps = np.arange(1, len(run.before) + 1)
        right.plot(steps, run.before, label=name, markevery=(index, 9), **style)
    left.axhline(100 * baseline, color="black", linewidth=0.8, label="linear, whole image")
    left.set(xlabel="parameter updates", ylabel="held-out digits told right (%)", title="Accuracy")
    right.set(
        xlabel="step (pixel)",
        ylabel="log10 of the norm of dL/dh over that at the last step",
        title="Gradient before training",
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
    legend_below(figure, left)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    run_command(main)
