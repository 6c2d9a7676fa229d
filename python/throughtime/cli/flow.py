"""`throughtime flow`: how gradients fare on their way back, with default and with good initial weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import throughtime as tt

from .output import check_plot_path, say

Array = NDArray[Any]

_CELLS = {"RNN": tt.RNN, "GRU": tt.GRU, "LSTM": tt.LSTM}
_INPUT_SIZE = 32


def flow(
    steps: Annotated[int, typer.Option(min=2, help="Timesteps of the sequence.")] = 1000,
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Sequences; norms are over all of them.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and sequence.")] = 0,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("throughtime-flow.png"),
) -> None:
    """Show the gradient at every timestep of RNN, GRU and LSTM, with a loss on the last step only.

    Each cell runs on the same random sequence, with default weights (torch's) and with good ones: recurrent weights
    orthogonal, gate biases for memories as long as the sequence (chrono), other biases zero.
    """
    check_plot_path(plot)
    norms = {
        name: {weights: _norms(name, weights, steps, hidden, batch, seed) for weights in ("default", "good")}
        for name in _CELLS
    }
    console = Console()
    console.print(_table(norms, f"Norm of dL/dh_t, loss on the last of {steps} steps, {hidden} units"))
    from .plots import save_flow_figure

    save_flow_figure(plot, norms, f"Gradient flow: {steps} steps, {hidden} units, loss on the last step only")
    say(console, f"plot: {plot}")


def set_good_weights(layer: Any, rng: np.random.Generator, max_steps: float) -> None:
    """Orthogonal recurrent weights; gate biases that remember up to `max_steps` steps; other biases zero."""
    for name, array in layer.parameters.items():
        gates = array.shape[0] // layer.hidden_size
        if name.startswith("weight_hh"):
            array[...] = tt.init.orthogonal(array.shape, rng, gates=gates, dtype=array.dtype)
        elif name.startswith("bias_ih") and gates > 1:
            array[...] = tt.init.chrono(
                array.shape, rng, max_steps, cell={3: "gru", 4: "lstm"}[gates], dtype=array.dtype
            )
        elif name.startswith("bias"):
            array[...] = 0


def norms_per_step(hidden: Array) -> Array:
    """The norms (L, T) of gradients (L, T, B, H), scaled first so that squares do not underflow."""
    wide = hidden.astype(np.float64)
    largest = np.abs(wide).max(axis=(2, 3), keepdims=True)
    scaled = wide / np.where(largest > 0, largest, 1)
    norms: Array = largest[:, :, 0, 0] * np.sqrt(np.square(scaled).sum(axis=(2, 3)))
    return norms


def gamma(norms: Array) -> float:
    """The geometric mean of the factor per step back, over the steps before the norm reaches zero."""
    back = norms[::-1]
    alive = len(back) if (back > 0).all() else int(np.argmin(back > 0))
    return math.nan if alive < 2 else float((back[alive - 1] / back[0]) ** (1 / (alive - 1)))


def _norms(name: str, weights: str, steps: int, hidden: int, batch: int, seed: int) -> Array:
    """In float64, where a norm may fall to 1e-308 before it is lost."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((steps, batch, _INPUT_SIZE))
    d_output = np.zeros((steps, batch, hidden))
    d_output[-1] = rng.standard_normal((batch, hidden))
    layer = _CELLS[name](_INPUT_SIZE, hidden, dtype="float64", seed=seed)
    if weights == "good":
        set_good_weights(layer, rng, max(2, steps))
    grads = layer.forward(x).backward(d_output, timesteps=("hidden",))
    norms: Array = norms_per_step(grads.hidden)[0]
    return norms


def _table(norms: dict[str, dict[str, Array]], title: str) -> Table:
    table = Table(title=title, caption="gamma: geometric mean of the factor per step back; 1 keeps the gradient")
    table.add_column("cell")
    table.add_column("weights")
    for column in ("last step", "middle", "first step", "log10", "gamma"):
        table.add_column(column, justify="right")
    for cell, curves in norms.items():
        for weights, row in curves.items():
            table.add_row(
                cell, weights, *(f"{row[t]:.1e}" for t in (-1, len(row) // 2, 0)), _log10(row[0]), f"{gamma(row):.4f}"
            )
    return table


def _log10(norm: float) -> str:
    return f"{math.log10(norm):.1f}" if norm > 0 else "below -308"
