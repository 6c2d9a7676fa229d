"""The effect of residual additions on a small transformer of one block, and of several.

Causal character transformers (attention, then a feed-forward layer, LayerNorm before each) learn the text of Python's
``help()``, with residual additions and with ``residual=False``; nothing else differs. The baselines are the frequencies
of characters and of pairs of characters.

    python examples/residual_ablation.py --plot residual_ablation.png
"""

from __future__ import annotations

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

_SIZE, _HEADS, _FEED_FORWARD = 64, 2, 128


class Transformer:
    """Token and position embeddings, blocks, Linear."""

    def __init__(self, characters: int, context: int, blocks: int, seed: int, *, residual: bool) -> None:
        self.tokens = tt.Embedding(characters, _SIZE, seed=[seed, 0])
        self.positions = tt.Embedding(context, _SIZE, seed=[seed, 1])
        sublayers = [
            sublayer
            for block in range(blocks)
            for sublayer in (
                tt.SelfAttention(_SIZE, _HEADS, seed=[seed, 2, block]),
                tt.MLP(_SIZE, _FEED_FORWARD, seed=[seed, 3, block]),
            )
        ]
        self.body = tt.Sequential(
            *(tt.ResidualBlock(sublayer, _SIZE, residual=residual) for sublayer in sublayers),
            tt.Linear(_SIZE, characters, seed=[seed, 4]),
        )
        self.parameters = _named(self.tokens, self.positions, self.body)

    def __call__(self, ids: Array) -> Array:
        """Logits (T, B, characters)."""
        return self.body(self.tokens(ids) + self.positions(np.arange(len(ids)))[:, None])

    def gradients(self, inputs: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """The mean loss (nats) of characters (T, B), and the gradient of every parameter."""
        tokens, positions = self.tokens.forward(inputs), self.positions.forward(np.arange(len(inputs)))
        tape = self.body.forward(tokens.output + positions.output[:, None])
        loss, d_logits = tt.cross_entropy(tape.output, targets)
        body = tape.backward(d_logits)
        return loss, _named(tokens.backward(body.input), positions.backward(body.input.sum(axis=1)), body)


def _named(tokens: Any, positions: Any, body: Any) -> dict[str, Array]:
    parts = {"tokens": tokens, "positions": positions, "body": body}
    return {f"{part}.{name}": array for part, own in parts.items() for name, array in own.parameters.items()}


def main(
    blocks: Annotated[list[int], typer.Option(min=1, help="Blocks of attention and feed-forward.")] = [1, 4],  # noqa: B006
    steps: Steps = 1500,
    context: Context = 64,
    batch: Batch = 32,
    lr: Rate = 2e-3,
    seed: Seed = 0,
    plot: Plot = None,
) -> None:
    """Train character transformers with and without residual additions, and compare with counting models."""
    text = python_help()
    prepare(plot, text, context)
    counts = counted(text, context)
    runs: dict[int, dict[str, Run]] = {count: {} for count in blocks}
    for count, by_name in runs.items():
        for name, residual in (("without residual", False), ("with residual", True)):
            model = Transformer(text.characters, context, count, seed, residual=residual)
            label = f"{_blocks(count)} {name}"
            by_name[name] = train(model, text, label, steps=steps, window=context, batch=batch, lr=lr, seed=seed)
    Console().print(table(runs, counts))
    if plot is not None:
        save_figure(plot, runs, counts)


def table(runs: dict[int, dict[str, Run]], counts: dict[str, float]) -> Table:
    """One row per model."""
    table = Table(title="Character models of Python's help()")
    table.add_column("model", no_wrap=True)
    for column in ("steps", "training nats", "held out nats", "held out bits", "seconds"):
        table.add_column(column, justify="right")
    for name, loss in counts.items():
        table.add_row(f"{name} counts", "", "", f"{loss:.3f}", f"{loss * BITS:.3f}", "")
    for count, by_name in runs.items():
        table.add_section()
        for name, run in by_name.items():
            losses = (f"{run.recent():.3f}", f"{run.final:.3f}", f"{run.final * BITS:.3f}")
            table.add_row(f"{_blocks(count)} {name}", str(len(run.losses)), *losses, f"{run.seconds:.0f}")
    return table


def save_figure(path: Path, runs: dict[int, dict[str, Run]], counts: dict[str, float]) -> None:
    """The losses by step, one panel for each number of blocks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5 * len(runs), 5), layout="constrained")
    figure.suptitle("Character transformers with and without residual additions")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (count, by_name) in zip(panels, runs.items(), strict=True):
        draw_losses(axes, by_name, counts)
        axes.set_title(_blocks(count))
    figure.savefig(path, dpi=110)


def _blocks(count: int) -> str:
    return f"{count} block{'s' * (count > 1)}"


if __name__ == "__main__":
    run_command(main)
