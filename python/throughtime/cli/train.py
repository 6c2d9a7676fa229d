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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import throughtime as tt
from throughtime.analysis.flow_result import GradientFlow

from .character_model import FILES, CharacterModel
from .errors import INTERRUPTED, fail
from .options import Force, check_finite, given
from .output import Output, check_directory_path, check_new_file, check_plot_path, say
from .text import counts, read_ids, text_name

Array = NDArray[Any]

_BITS = 1 / math.log(2)  # nats to bits
_FLOW_STEPS = 1000
_MAX_NORM = 1.0
_HELD_OUT = 20  # the last one of so many characters is not learnt from
_STREAMS, _WINDOW, _MOST = 32, 64, 1 << 17  # in how many, in what pieces, and how much of it is read for its loss
_REPORTS = 5.0  # seconds between lines where the output is no terminal


class Cell(StrEnum):
    """The recurrent layers to choose from."""

    lstm = "lstm"
    gru = "gru"
    rnn = "rnn"


def train(
    context: typer.Context,
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
    plot: Annotated[
        Path, typer.Option(help="Where the plot goes; a file that you name is replaced with --force only.")
    ] = Path("throughtime-train.png"),
    save: Annotated[
        Path | None,
        typer.Option(
            help="A directory for the model: embedding.npz, recurrent.npz and linear.npz for tt.load, vocabulary.json.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Train a character model on a text, print a sample, plot the loss and the gradient at every timestep.

    The last 5 % of the text are held out: the loss on them tells what was learnt from what was memorised.
    """
    check_finite({"--lr": lr, "--temperature": temperature})
    vocabulary, ids = read_ids(file)
    check_plot_path(plot)
    if given(context, "plot"):
        check_new_file("--plot", plot, force)
    if save is not None:
        _check_model_path(save, force)
    training, held_out = split(ids, window)
    streams = _streams(training, batch, window, len(vocabulary))
    model = CharacterModel.new(vocabulary, cell, layers, hidden, seed)
    console = Output()
    say(
        console,
        f"{text_name(file)}: {len(ids):,} characters, {len(vocabulary)} "
        f"distinct; {model.recurrent!r}, {sum(map(np.size, model.parameters.values())):,} parameters; "
        f"{streams.inputs.shape[1]} streams",
    )

    run = _train(model, streams, steps, window, lr, console)
    if save is not None and run.losses:
        model.save(save)  # before anything that may fail
    if run.error is not None:
        raise run.error
    unigram = unigram_bits(ids)
    _report(run, unigram, held_out_bits(model, held_out), console)
    if save is not None and run.losses:
        say(console, f"model: {save}")
    if run.losses:
        title = f"Character model: {cell.value.upper()}, {layers} x {hidden} units"
        _plot(plot, run.losses, unigram, model.flow(ids[: _FLOW_STEPS + 1, None]), title, console)
        say(console, model.write_on(ids[:1], sample_length, temperature, np.random.default_rng(seed)), keep="\n\t")
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True)
class Streams:
    """Parallel stretches of the text: character ids (N, B), and those one character later."""

    inputs: Array
    targets: Array

    def windows(self, length: int) -> Iterator[tuple[Array, Array, bool]]:
        """Windows (T, B) one after the other, for ever; true where one starts at the beginning again."""
        while True:
            for start in range(0, len(self.inputs) - length + 1, length):
                steps = slice(start, start + length)
                inputs, targets = (np.ascontiguousarray(ids[steps], np.int64) for ids in (self.inputs, self.targets))
                yield inputs, targets, start == 0


@dataclass
class Run:
    """What a training did so far."""

    losses: list[float] = field(default_factory=list)  # bits per character, one per step
    characters: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    error: OSError | None = None  # of the output, which ends a training as well

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
    shares = counts(ids) / len(ids)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def split(ids: Array, window: int) -> tuple[Array, Array]:
    """What to learn from, and the last 5 % of a text, or less where no window would be left to learn from."""
    cut = len(ids) - max(0, min(len(ids) // _HELD_OUT, len(ids) - window - 1))
    return ids[:cut], ids[max(0, cut - 1) :]  # with the character from which the first one held out is told


def held_out_bits(model: CharacterModel, ids: Array) -> float:
    """Bits per character on what was held out, of a large text on some of it from all over; nan of nothing."""
    characters = len(ids) - 1
    if characters < 1:
        return math.nan
    streams = max(1, min(_STREAMS, characters // _WINDOW))
    return model.loss(ids, streams, _WINDOW, _MOST // streams) * _BITS


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
    return Streams(*(ids[skip : skip + streams * length].reshape(streams, length).T for skip in (0, 1)))


def _train(model: CharacterModel, streams: Streams, steps: int, window: int, lr: float, console: Output) -> Run:
    """Train until done, or Ctrl-C, or the output fails."""
    run, progress = Run(), _progress(console)
    optimizer, parameters, state = tt.optim.Adam(lr=lr), model.parameters, None
    task = progress.add_task("training", total=steps, loss=math.nan, rate=0.0)
    start = last = time.perf_counter()
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
                if not console.is_terminal and start + run.seconds - last >= _REPORTS:
                    last = start + run.seconds
                    say(
                        console,
                        f"step {step + 1} of {steps}: {run.recent():.3f} bits per character, "
                        f"{run.rate:,.0f} characters per second",
                    )
    except KeyboardInterrupt:
        run.interrupted = True
    except OSError as error:
        run.error = error
    return run


def _progress(console: Output) -> Progress:
    """The bar; nothing where the output is no terminal, which gets lines."""
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


def _report(run: Run, unigram: float, held_out: float, console: Output) -> None:
    state = "interrupted after" if run.interrupted else "trained"
    if not run.losses:
        say(console, f"{state} 0 steps")
        return
    on_held_out = "" if math.isnan(held_out) else f", {held_out:.3f} on the {1 / _HELD_OUT:.0%} held out"
    say(
        console,
        f"{state} {len(run.losses)} steps in {run.seconds:.1f} s, {run.rate:,.0f} characters per second; loss "
        f"{run.losses[0]:.3f} -> {run.recent():.3f} bits per character{on_held_out} (unigram baseline {unigram:.3f})",
    )


def _check_model_path(path: Path, force: bool) -> None:
    """Fail unless a model can be written there, and none is there, or may be replaced."""
    check_directory_path("--save", path)
    found = [name for name in FILES if (path / name).exists()]
    if found and not force:
        fail(f"--save {path}: holds {', '.join(found)} already; choose another name, or replace them with --force")


def _plot(path: Path, losses: list[float], unigram: float, flow: GradientFlow, title: str, console: Output) -> None:
    from .plots import save_training_figure

    save_training_figure(path, losses, unigram, flow, title)
    say(console, f"plot: {path}")
