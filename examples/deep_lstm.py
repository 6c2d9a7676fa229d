"""The effect of residual blocks on a deep stack of LSTMs.

Eight LSTM layers learn the text of Python's ``help()``, character by character: as a plain stack, with residual
additions, and with LayerNorm before each layer in addition. Before the first update, the gradient of the loss is
measured at the input of every layer; then all models are trained in the same way.

    python examples/deep_lstm.py --plot deep_lstm.png
"""

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
from characters import (
    BITS,
    MARKERS,
    SIZES,
    STYLES,
    Batch,
    Context,
    Rate,
    Run,
    counted,
    draw_losses,
    prepare,
    python_help,
    train,
)
from common import Plot, Seed, Steps, run_command

Array = NDArray[Any]


class DeepLSTM:
    """Embedding, LSTM layers, Linear."""

    def __init__(self, kind: str, characters: int, layers: int, hidden: int, seed: int) -> None:
        lstms = [tt.LSTM(hidden, hidden, seed=[seed, 2 + layer]) for layer in range(layers)]
        self.stack = tt.Sequential(
            tt.Embedding(characters, hidden, seed=[seed, 0]),
            *(KINDS[kind](lstm, hidden) for lstm in lstms),
            tt.Linear(hidden, characters, seed=[seed, 1]),
        )
        self.parameters = self.stack.parameters

    def __call__(self, ids: Array) -> Array:
        """Logits (T, B, characters)."""
        return self.stack(ids)

    def gradients(self, inputs: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """The mean loss (nats) of characters (T, B), and the gradient of every parameter."""
        loss, grads = self._backward(inputs, targets)
        return loss, grads.parameters

    def gradient_norms(self, inputs: Array, targets: Array) -> list[float]:
        """The norm of the loss's gradient at the input of every LSTM layer, the one next to the text first."""
        _, grads = self._backward(inputs, targets)
        return [tt.clip_grad_norm({"input": layer.input}, math.inf) for layer in grads.layers[1:-1]]

    def _backward(self, inputs: Array, targets: Array) -> tuple[float, Any]:
        tape = self.stack.forward(inputs)
        loss, d_logits = tt.cross_entropy(tape.output, targets)
        return loss, tape.backward(d_logits, timesteps=())


KINDS = {
    "plain": lambda lstm, size: lstm,
    "residual": lambda lstm, size: tt.ResidualBlock(lstm, size, norm=None),
    "residual, LayerNorm": lambda lstm, size: tt.ResidualBlock(lstm, size),
}


def main(
    layers: Annotated[int, typer.Option(min=1, help="LSTM layers.")] = 8,
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = 64,
    steps: Steps = 1000,
    context: Context = 64,
    batch: Batch = 32,
    lr: Rate = 4e-3,
    seed: Seed = 0,
    plot: Plot = None,
) -> None:
    """Train a deep LSTM: plain, residual, and residual with LayerNorm; show the gradient before training."""
    text = python_help()
    prepare(plot, text, context)
    counts = counted(text, context)
    first = text.batch(np.random.default_rng(seed), context, batch)
    runs, norms = {}, {}
    for kind in KINDS:
        model = DeepLSTM(kind, text.characters, layers, hidden, seed)
        norms[kind] = model.gradient_norms(*first)
        runs[kind] = train(model, text, kind, steps=steps, window=context, batch=batch, lr=lr, seed=seed)
    console = Console()
    console.print(norm_table(norms))
    console.print(loss_table(runs, counts, steps))
    if plot is not None:
        save_figure(plot, runs, counts, norms)


def norm_table(norms: dict[str, list[float]]) -> Table:
    """One row per layer, and the ratio of the first to the last."""
    table = Table(title="Norm of the gradient entering each layer, before training")
    table.add_column("layer", justify="right")
    for kind in norms:
        table.add_column(kind, justify="right")
    for layer, row in enumerate(zip(*norms.values(), strict=True), 1):
        table.add_row(str(layer), *(f"{norm:.1e}" for norm in row))
    table.add_section()
    table.add_row("first/last", *(f"{column[0] / column[-1]:.1e}" for column in norms.values()))
    return table


def loss_table(runs: dict[str, Run], counts: dict[str, float], steps: int) -> Table:
    """One row per model."""
    table = Table(title="Bits per character: training, by step; held out, at the end")
    table.add_column("model", no_wrap=True)
    marks = sorted({max(1, steps * quarter // 4) for quarter in range(1, 5)})
    for column in (*(str(mark) for mark in marks), "held out", "seconds"):
        table.add_column(column, justify="right")
    for name, loss in counts.items():
        table.add_row(f"{name} counts", *("" for _ in marks), f"{loss * BITS:.3f}", "")
    for name, run in runs.items():
        on_the_way = (f"{run.recent(mark) * BITS:.3f}" for mark in marks)
        table.add_row(name, *on_the_way, f"{run.final * BITS:.3f}", f"{run.seconds:.0f}")
    return table


def save_figure(path: Path, runs: dict[str, Run], counts: dict[str, float], norms: dict[str, list[float]]) -> None:
    """Left: the loss by step. Right: the gradient by layer."""
    from matplotlib.figure import Figure

    layers = len(norms["plain"])
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(f"Character models of {layers} LSTM layers")
    left, right = figure.subplots(1, 2)
    draw_losses(left, runs, counts)
    for index, (kind, column) in enumerate(norms.items()):
        style = {"color": f"C{index}", "linestyle": STYLES[index], "marker": MARKERS[index]}
        style |= {"markersize": SIZES[index], "fillstyle": "none"}
        right.semilogy(range(1, layers + 1), column, label=kind, **style)
    right.set(
        title="Gradient before training",
        xlabel="layer (1: next to the text)",
        ylabel="norm of dL/dx (log scale)",
    )
    right.grid(alpha=0.3)
    right.legend(handlelength=3.5)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(main)
