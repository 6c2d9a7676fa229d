"""The effect of initial weights on signal and gradient in a plain MLP of 100 layers, before any training.

100 x (Linear + ReLU) and 100 x (Linear + Tanh), with torch's default weights, Xavier's, Kaiming's and orthogonal ones.
Input and d_output are random rows. The example measures the ratio of the output's norm to that of the input, and the
norm of dL/dx at the input of every Linear.

    python examples/initial_weights.py --plot initial_weights.png
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import throughtime as tt
from throughtime.cli.output import check_plot_path

Array = NDArray[Any]

_SIZE, _ROWS = 128, 16
ACTIVATIONS: dict[str, type[tt.ReLU] | type[tt.Tanh]] = {"ReLU": tt.ReLU, "tanh": tt.Tanh}
WEIGHTS = ("default", "xavier", "kaiming", "orthogonal")


@dataclass(frozen=True)
class Measured:
    """Logarithms to base 10."""

    signal: float  # ratio of the output's norm to the input's
    norms: Array  # of dL/dx at every Linear, from the first on

    @property
    def gradient(self) -> float:
        """The ratio of the gradient's norm at the first Linear to that at the last."""
        return float(self.norms[0] - self.norms[-1])


def plain_mlp(activation: str, weights: str, depth: int, seed: int) -> tt.Sequential:
    """`depth` times Linear and activation."""
    make = ACTIVATIONS[activation]
    stack = tt.Sequential(
        *(layer for place in range(depth) for layer in (tt.Linear(_SIZE, _SIZE, seed=[seed, place]), make()))
    )
    return stack if weights == "default" else tt.init.apply(stack, weights, seed=seed)


def measure(activation: str, weights: str, depth: int, seed: int) -> Measured:
    """One stack, for random rows and a random d_output."""
    rng = np.random.default_rng([seed, 1])
    x, d_output = (rng.standard_normal((_ROWS, _SIZE)).astype(np.float32) for _ in range(2))
    stack = plain_mlp(activation, weights, depth, seed)
    signal = math.log10(np.linalg.norm(stack(x)) / np.linalg.norm(x))
    return Measured(signal, tt.gradient_flow(stack, x, d_output).depth_log10_norm[:-1:2])


def main(
    depth: Annotated[int, typer.Option(min=1, help="Layers of each stack.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, input and d_output.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="File of the plot.", show_default=False)] = None,
) -> None:
    """Show signal and gradient in deep plain MLPs with several initial weights."""
    if plot is not None:
        check_plot_path(plot)
    console = Console()
    cases = [(activation, weights) for weights in WEIGHTS for activation in ACTIVATIONS]
    measured = {
        case: measure(*case, depth, seed)
        for case in track(cases, "measuring", console=console, disable=not console.is_terminal)
    }
    console.print(table(measured, depth))
    if plot is not None:
        save_figure(plot, measured, depth)


def table(measured: dict[tuple[str, str], Measured], depth: int) -> Table:
    """One row per kind of weights."""
    table = Table(title=f"log10 of ratios of norms, {depth} layers: output over input, gradient at first over last")
    table.add_column("weights")
    for activation in ACTIVATIONS:
        table.add_column(f"{activation}, output", justify="right")
        table.add_column(f"{activation}, gradient", justify="right")
    for weights in WEIGHTS:
        found = [measured[activation, weights] for activation in ACTIVATIONS]
        table.add_row(weights, *(f"{value:z.2f}" for one in found for value in (one.signal, one.gradient)))
    return table


def save_figure(path: Path, measured: dict[tuple[str, str], Measured], depth: int) -> None:
    """The gradient's norm at every layer, for each activation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(f"Gradient in plain MLPs of {depth} layers, by initial weights")
    for axes, activation in zip(figure.subplots(1, 2), ACTIVATIONS, strict=True):
        for index, weights in enumerate(WEIGHTS):
            style = {"linestyle": ("--", "-.", "-", (0, (1, 2)))[index], "marker": "ovs^"[index], "markersize": 5}
            every = max(1, depth // 8)
            norms = measured[activation, weights].norms
            axes.plot(
                range(1, depth + 1),
                norms,
                color=f"C{index}",
                label=weights,
                markevery=(index * every // 4, every),
                **style,
            )
        axes.set(title=activation, xlabel="layer (1: next to the input)", ylabel="log10 of the norm of dL/dx")
        axes.grid(alpha=0.3)
        axes.legend(handlelength=4)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    typer.run(main)
