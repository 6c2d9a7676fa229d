"""A character language model written for torch.nn.LSTM, and the same with one import changed.

LSTM layers read the text of Python's ``help()`` in parallel streams, with truncated backpropagation through time (the
state is carried from window to window, its gradient is not), tied weights of embedding and output, and a clipped
gradient. ``--layers`` chooses the import of LSTM; with ``both``, the two models start from the same weights and see the
same text, so their losses should be the same up to rounding.

    python examples/language_model.py --plot language_model.png
"""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from characters import BITS, STYLES, Batch, Context, Run, Text, prepare, python_help
from common import Plot, Seed, Steps, run_command
from throughtime.cli.output import check_plot_path


class Layers(StrEnum):
    """The library of the LSTM."""

    TORCH = "torch"
    THROUGHTIME = "throughtime"
    BOTH = "both"


class LanguageModel(nn.Module):
    """Embedding, LSTM layers, and a Linear that shares the embedding's weight."""

    def __init__(self, source: Layers, characters: int, hidden: int, depth: int) -> None:
        super().__init__()
        if source is Layers.TORCH:
            from torch.nn import LSTM
        else:
            from throughtime.torch import LSTM

        self.embedding = nn.Embedding(characters, hidden)
        self.lstm = LSTM(hidden, hidden, num_layers=depth)
        self.head = nn.Linear(hidden, characters)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=hidden**-0.5)

    def forward(self, ids: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits (T, B, characters) of the next characters, and the state after the window."""
        output, state = self.lstm(self.embedding(ids), state)
        return self.head(output), state


def streams(text: Text, batch: int) -> Tensor:
    """The training text as (steps, batch): consecutive parts of it as columns."""
    length = len(text.training) // batch
    return torch.tensor(np.ascontiguousarray(text.training[: length * batch].reshape(batch, length).T))


def train(
    model: LanguageModel,
    ids: Tensor,
    *,
    steps: int,
    window: int,
    lr: float,
    max_norm: float,
    monitored: Path | None = None,
) -> Run:
    """Train on windows in order, with the state detached between them; after the last, restart with a zero state."""
    if monitored is not None:
        from throughtime.torch import FlowMonitor

        monitor = FlowMonitor(model, every=50, range="full", sinks=[print])
    run, optimizer, start = Run(), torch.optim.Adam(model.parameters(), lr=lr), time.perf_counter()
    windows = (len(ids) - 1) // window
    state = None
    for step in range(steps):
        place = step % windows * window
        state = None if place == 0 or state is None else tuple(part.detach() for part in state)
        logits, state = model(ids[place : place + window], state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[place + 1 : place + 1 + window].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        run.losses.append(loss.item())
        if monitored is not None:
            monitor.add_loss(run.losses[-1])
    run.seconds = time.perf_counter() - start
    if monitored is not None:
        monitor.plot(monitored)
    return run


def main(
    layers: Annotated[Layers, typer.Option(help="Library of the LSTM.")] = Layers.BOTH,
    depth: Annotated[int, typer.Option(min=1, help="LSTM layers.")] = 2,
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = 128,
    steps: Steps = 200,
    context: Context = 64,
    batch: Batch = 32,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of Adam.")] = 2e-3,
    clip: Annotated[float, typer.Option(min=0, help="Largest norm of the gradient.")] = 1.0,
    seed: Seed = 0,
    plot: Plot = None,
    monitor: Annotated[
        Path | None,
        typer.Option(help="File of the gradient through time in throughtime.torch.LSTM.", show_default=False),
    ] = None,
) -> None:
    """Train a character model with torch.nn.LSTM, with throughtime.torch.LSTM, or with each of them."""
    text = python_help()
    prepare(plot, text, context)
    if monitor is not None:
        check_plot_path(monitor, "--monitor")
    ids = streams(text, batch)
    if len(ids) <= context:
        raise SystemExit(f"--context {context}, --batch {batch}: expected a product below {len(text.training)}")
    if monitor is not None and layers is Layers.TORCH:
        raise SystemExit("--monitor: expected --layers throughtime or both, got torch")
    runs = {}
    for source in (Layers.TORCH, Layers.THROUGHTIME) if layers is Layers.BOTH else (layers,):
        torch.manual_seed(seed)
        model = LanguageModel(source, text.characters, hidden, depth)
        watched = monitor if source is Layers.THROUGHTIME else None
        options: dict[str, Any] = {"steps": steps, "window": context, "lr": lr, "max_norm": clip, "monitored": watched}
        runs[f"{source.value} LSTM"] = train(model, ids, **options)
    Console().print(loss_table(runs, steps))
    if plot is not None:
        save_figure(plot, runs)


def loss_table(runs: dict[str, Run], steps: int) -> Table:
    """One row per model, and their largest difference."""
    table = Table(title="Training loss, bits per character, by step")
    table.add_column("model", no_wrap=True)
    marks = sorted({max(1, steps * quarter // 4) for quarter in range(1, 5)})
    for column in (*(str(mark) for mark in marks), "seconds"):
        table.add_column(column, justify="right")
    for name, run in runs.items():
        table.add_row(name, *(f"{run.losses[mark - 1] * BITS:.4f}" for mark in marks), f"{run.seconds:.1f}")
    if len(runs) == 2:
        first, second = (np.array(run.losses) * BITS for run in runs.values())
        apart = np.maximum.accumulate(np.abs(first - second))
        table.add_row("largest difference", *(f"{apart[mark - 1]:.1e}" for mark in marks), "")
    return table


def save_figure(path: Path, runs: dict[str, Run]) -> None:
    """The loss by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, run), style in zip(runs.items(), STYLES[1::-1], strict=False):
        axes.plot(range(1, len(run.losses) + 1), np.array(run.losses) * BITS, style, label=name)
    axes.set(title="The same script with two LSTMs", xlabel="step (parameter updates)", ylabel="bits per character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(main)
