"""`throughtime train`: a character model of a text, by truncated BPTT with carried state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import throughtime as tt

from .character_model import CharacterModel
from .output import check_directory_path, check_plot_path, fail, say
from .text import encode, read_text, text_name

Array = NDArray[Any]

_BITS = 1 / math.log(2)  # nats to bits
_FLOW_STEPS = 1000
_MAX_NORM = 1.0
_INTERRUPTED = 130  # exit code of a command ended by Ctrl-C


class Cell(StrEnum):
    """The recurrent layers to choose from."""

    lstm = "lstm"
    gru = "gru"
    rnn = "rnn"


def train(
    file: Annotated[
        Path | None, typer.Argument(help="A UTF-8 text; without it, the text of Python's help().", show_default=False)
    ] = None,
    cell: Annotated[Cell, typer.Option(case_sensitive=False, help="Recurrent layer.")] = Cell.lstm,
    layers: Annotated[int, typer.Option(min=1, help="Recurrent layers.")] = 1,
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Parameter updates.")] = 500,
    batch: Annotated[int, typer.Option(min=1, help="Parallel streams, fewer if the text is short.")] = 32,
    window: Annotated[int, typer.Option(min=1, help="Characters per stream and update (truncated BPTT).")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of Adam at the start; falls to a tenth.")] = 4e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and sample.")] = 0,
    sample_length: Annotated[int, typer.Option(min=0, help="Characters of the sample.")] = 400,
    temperature: Annotated[float, typer.Option(min=0, help="Of the sample; 0 takes the likeliest character.")] = 0.7,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("throughtime-train.png"),
    save: Annotated[
        Path | None,
        typer.Option(
            help="A directory for the model: embedding.npz, recurrent.npz and linear.npz for tt.load, vocabulary.json.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a character model on a text, print a sample, plot the loss and the gradient at every timestep."""
    for option, value in (("--lr", lr), ("--temperature", temperature)):
        if not math.isfinite(value):
            fail(f"{option} must be a finite number, got {value}")
    text = read_text(file)
    check_plot_path(plot)
    if save is not None:
        check_directory_path("--save", save)
    vocabulary, ids = encode(text)
    streams = _streams(ids, batch, window, len(vocabulary))
    model = CharacterModel.new(vocabulary, cell, layers, hidden, seed)
    console = Console()
    say(
        console,
        f"{text_name(file)}: {len(ids):,} characters, {len(vocabulary)} "
        f"distinct; {model.recurrent!r}, {sum(map(np.size, model.parameters.values())):,} parameters; "
        f"{streams.inputs.shape[1]} streams",
    )

    run = _train(model, streams, steps, window, lr, console)
    _report(run, unigram_bits(ids), console)
    if run.losses:
        _finish(run, model, ids, plot, console, title=f"{cell.value.upper()}, {layers} x {hidden} units")
        say(console, sample(model, int(ids[0]), sample_length, temperature, np.random.default_rng(seed)))
    if save is not None:
        model.save(save)
        say(console, f"model: {save}")
    if run.interrupted:
        raise typer.Exit(_INTERRUPTED)


@dataclass(frozen=True)
class Streams:
    """Parallel stretches of the text: character ids (N, B), and those one character later."""

    inputs: Array
    targets: Array

    def windows(self, length: int) -> Iterator[tuple[Array, Array, bool]]:
        """Windows (T, B) one after the other, for ever; true where one starts at the beginning again."""
        while True:
            for start in range(0, len(self.inputs) - length + 1, length):
                yield self.inputs[start : start + length], self.targets[start : start + length], start == 0


@dataclass
class Run:
    """What a training did so far."""

    losses: list[float] = field(default_factory=list)  # bits per character, one per step
    characters: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def rate(self) -> float:
        """Characters per second."""
        return self.characters / self.seconds if self.seconds else 0.0

    def recent(self, count: int = 20) -> float:
        """The mean loss of the last steps."""
        last = self.losses[-count:]
        return sum(last) / len(last) if last else math.nan


def unigram_bits(ids: Array) -> float:
    """Bits per character of a model that knows how frequent characters are, and nothing else."""
    shares = np.bincount(ids) / len(ids)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def sample(model: CharacterModel, first: int, length: int, temperature: float, rng: np.random.Generator) -> str:
    """Let the model write on after the character `first`."""
    current, state, written = first, None, []
    for _ in range(length):
        output, state = model.recurrent(model.embedding(np.array([[current]])), state)
        logits = model.linear(output)[0, 0].astype(np.float64)
        current = _draw(logits, temperature, rng)
        written.append(model.vocabulary[current])
    return "".join(written)


def _draw(logits: Array, temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    cumulative = np.exp((logits - logits.max()) / temperature).cumsum()
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right").clip(max=len(logits) - 1))


def _streams(ids: Array, batch: int, window: int, characters: int) -> Streams:
    """As many streams, up to `batch`, as the text has windows for."""
    if not characters:
        fail("the text is empty")
    if characters < 2:
        fail(f"the text must have at least 2 different characters, got {characters}")
    streams = min(batch, (len(ids) - 1) // window)
    if streams == 0:
        fail(f"the text has {len(ids)} characters, --window {window} needs at least {window + 1}")
    length = (len(ids) - 1) // streams
    shape = (streams, length)
    return Streams(*(np.ascontiguousarray(ids[skip : skip + streams * length].reshape(shape).T) for skip in (0, 1)))


def _train(model: CharacterModel, streams: Streams, steps: int, window: int, lr: float, console: Console) -> Run:
    """Train until done or Ctrl-C."""
    run, progress = Run(), _progress(console)
    optimizer, parameters, state = tt.optim.Adam(lr=lr), model.parameters, None
    task = progress.add_task("training", total=steps, loss=math.nan, rate=0.0)
    start = time.perf_counter()
    try:
        with progress:
            for step, (inputs, targets, first) in zip(range(steps), streams.windows(window), strict=False):
                loss, grads, state = model.gradients(inputs, targets, None if first else state)
                if not math.isfinite(loss):
                    fail(f"the loss is {loss} at step {step + 1}; a smaller --lr may help", code=1)
                tt.clip_grad_norm(grads, _MAX_NORM)
                optimizer.lr = lr * (1 - 0.9 * step / steps)
                optimizer.step(parameters, grads)
                run.losses.append(loss * _BITS)
                run.characters += inputs.size
                run.seconds = time.perf_counter() - start
                progress.update(task, advance=1, loss=run.recent(), rate=run.rate)
    except KeyboardInterrupt:
        run.interrupted = True
    return run


def _progress(console: Console) -> Progress:
    """The bar; nothing where the output is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]:.3f} bits/char"),
        TextColumn("{task.fields[rate]:,.0f} chars/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _report(run: Run, unigram: float, console: Console) -> None:
    state = "interrupted after" if run.interrupted else "trained"
    if not run.losses:
        say(console, f"{state} 0 steps")
        return
    say(
        console,
        f"{state} {len(run.losses)} steps in {run.seconds:.1f} s, {run.rate:,.0f} characters per second; loss "
        f"{run.losses[0]:.3f} -> {run.recent():.3f} bits per character (unigram baseline {unigram:.3f})",
    )


def _finish(run: Run, model: CharacterModel, ids: Array, plot: Path, console: Console, *, title: str) -> None:
    from .plots import save_training_figure

    flow = model.flow(ids[: _FLOW_STEPS + 1, None])
    save_training_figure(plot, run.losses, unigram_bits(ids), flow, f"Character model: {title}")
    say(console, f"plot: {plot}")
