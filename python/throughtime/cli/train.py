"""`throughtime train`: trains a character model on a text, by truncated BPTT with carried state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
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
from .monitoring import check_monitor_paths, new_monitor, save_monitor
from .options import Force, check_finite, given, with_options
from .output import Output, check_directory_path, check_new_file, check_plot_path, say
from .text import counts, read_ids, text_name

Array = NDArray[Any]

_BITS = 1 / math.log(2)  # nats to bits
_FLOW_STEPS = 1000
_MAX_NORM = 1.0
_HELD_OUT = 20  # the last of this many equal parts of a text is held out
_STREAMS, _WINDOW, _MOST = (
    32,
    64,
    1 << 17,
)  # of the held-out text; _MOST characters of it are read
_REPORTS = 5.0  # seconds between lines if the output is not a terminal


class Cell(StrEnum):
    """The recurrent layers to choose from."""

    lstm = "lstm"
    gru = "gru"
    rnn = "rnn"


@dataclass
class Options:
    """The command's options."""

    file: Annotated[
        Path | None, typer.Argument(help="A UTF-8 text; without it, the text of Python's help().", show_default=False)
    ] = None
    cell: Annotated[Cell, typer.Option(case_sensitive=False, help="Recurrent layer.")] = Cell.lstm
    layers: Annotated[int, typer.Option(min=1, help="Recurrent layers.")] = 1
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = 256
    steps: Annotated[int, typer.Option(min=1, help="Parameter updates.")] = 500
    batch: Annotated[int, typer.Option(min=1, help="Parallel streams, fewer if the text is short.")] = 32
    window: Annotated[int, typer.Option(min=1, help="Characters per stream and update (truncated BPTT).")] = 64
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of Adam at the start; falls to a tenth.")] = 4e-3
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and sample.")] = 0
    sample_length: Annotated[int, typer.Option(min=0, help="Length of the sample in characters.")] = 400
    temperature: Annotated[float, typer.Option(min=0, help="Of the sample; 0 takes the likeliest character.")] = 0.7
    plot: Annotated[Path, typer.Option(help="File for the plot; if you name one that exists, --force replaces it.")] = (
        Path("throughtime-train.png")
    )
    save: Annotated[
        Path | None,
        typer.Option(
            help="A directory for the model: embedding.npz, recurrent.npz and linear.npz for tt.load, vocabulary.json.",
            show_default=False,
        ),
    ] = None
    monitor: Annotated[
        bool,
        typer.Option(
            "--monitor",
            help="Show the gradient by lag as training goes, with a loss on a window's last character: a line of "
            "blocks every 50 updates, a level for each power of ten; NAME-monitor.png and .html, after --plot.",
        ),
    ] = False
    force: Force = False


@with_options
def train(context: typer.Context, options: Options) -> None:
    """Train a character model on a text, print a sample, plot the loss and the gradient at every timestep.

    The last 5 % of the text are held out: the loss on them shows how much was learnt rather than memorised.
    """
    check_finite({"--lr": options.lr, "--temperature": options.temperature})
    vocabulary, ids = read_ids(options.file)
    _check_paths(options, given(context, "plot"))
    training, held_out = split(ids, options.window)
    streams = _streams(training, options.batch, options.window, len(vocabulary))
    model = CharacterModel.new(vocabulary, options.cell, options.layers, options.hidden, options.seed)
    console = Output()
    say(
        console,
        f"{text_name(options.file)}: {len(ids):,} characters, {len(vocabulary)} "
        f"distinct; {model.recurrent!r}, {sum(map(np.size, model.parameters.values())):,} parameters; "
        f"{streams.inputs.shape[1]} streams",
    )
    monitor = new_monitor(model.recurrent, options.steps, console) if options.monitor else None
    with monitor or nullcontext():
        try:
            run = _train(model, streams, options, console, monitor)
        except typer.Exit:  # the loss is not finite: the monitor may show why
            if monitor is not None:
                save_monitor(monitor, options.plot, console)
            raise
    if options.save is not None and run.losses:
        model.save(options.save)  # before any step that may fail
    if run.error is not None:
        raise run.error
    unigram = unigram_bits(ids)
    _report(run, unigram, held_out_bits(model, held_out), console)
    if options.save is not None and run.losses:
        say(console, f"model: {options.save}")
    if monitor is not None:
        save_monitor(monitor, options.plot, console)
    if run.losses:
        title = f"Character model: {options.cell.value.upper()}, {options.layers} x {options.hidden} units"
        _plot(options.plot, run.losses, unigram, model.flow(ids[: _FLOW_STEPS + 1, None]), title, console)
        rng = np.random.default_rng(options.seed)
        say(console, model.write_on(ids[:1], options.sample_length, options.temperature, rng), keep="\n\t")
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True)
class Streams:
    """Parallel stretches of the text: character ids (N, B), and those one character later."""

    inputs: Array
    targets: Array

    def windows(self, length: int) -> Iterator[tuple[Array, Array, bool]]:
        """Consecutive windows (T, B), endlessly; true if the window is the first of the text."""
        while True:
            for start in range(0, len(self.inputs) - length + 1, length):
                steps = slice(start, start + length)
                inputs, targets = (np.ascontiguousarray(ids[steps], np.int64) for ids in (self.inputs, self.targets))
                yield inputs, targets, start == 0


@dataclass
class Run:
    """The state of a training run."""

    losses: list[float] = field(default_factory=list)  # bits per character, one per step
    characters: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    error: OSError | None = None  # a failure to write the output, which ends the training

    @property
    def rate(self) -> float:
        """Characters per second."""
        return self.characters / self.seconds if self.seconds else 0.0

    def recent(self, count: int = 20) -> float:
        """The mean loss of the last steps."""
        last = self.losses[-count:]
        return sum(last) / len(last) if last else math.nan


def unigram_bits(ids: Array) -> float:
    """Bits per character of a model that knows the frequencies of characters only."""
    shares = counts(ids) / len(ids)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def split(ids: Array, window: int) -> tuple[Array, Array]:
    """The part to train on, and the last 5 % of the text, or less if no window would remain for training."""
    cut = len(ids) - max(0, min(len(ids) // _HELD_OUT, len(ids) - window - 1))
    return ids[:cut], ids[max(0, cut - 1) :]  # with the character before, from which the first is predicted


def held_out_bits(model: CharacterModel, ids: Array) -> float:
    """Bits per character on the held-out text, on samples spread over it if it is large; nan if it is empty."""
    characters = len(ids) - 1
    if characters < 1:
        return math.nan
    streams = max(1, min(_STREAMS, characters // _WINDOW))
    return model.loss(ids, streams, _WINDOW, _MOST // streams) * _BITS


def _streams(ids: Array, batch: int, window: int, characters: int) -> Streams:
    """At most `batch` streams, fewer if the text has fewer windows."""
    if not characters:
        fail("the text is empty")
    if characters < 2:
        fail(f"the text must have at least 2 different characters, got {characters}")
    streams = min(batch, (len(ids) - 1) // window)
    if streams == 0:
        fail(f"the text has {len(ids)} characters, --window {window} needs at least {window + 1}")
    length = (len(ids) - 1) // streams
    return Streams(*(ids[skip : skip + streams * length].reshape(streams, length).T for skip in (0, 1)))


def _train(
    model: CharacterModel, streams: Streams, options: Options, console: Output, monitor: tt.FlowMonitor | None
) -> Run:
    """Train until all steps are done, Ctrl-C, or a failure to write the output."""
    run, progress, steps, lr = Run(), _progress(console), options.steps, options.lr
    optimizer, parameters, state = tt.optim.Adam(lr=lr), model.parameters, None
    task = progress.add_task("training", total=steps, loss=math.nan, rate=0.0)
    start = last = time.perf_counter()
    try:
        with progress:
            for step, (inputs, targets, first) in zip(range(steps), streams.windows(options.window), strict=False):
                loss, grads, state = model.gradients(inputs, targets, None if first else state)
                if not math.isfinite(loss):
                    fail(f"the loss is {loss} at step {step + 1}; a smaller --lr may help", code=1)
                tt.clip_grad_norm(grads, _MAX_NORM)
                optimizer.lr = lr * (1 - 0.9 * step / steps)
                optimizer.step(parameters, grads)
                run.losses.append(loss * _BITS)
                if monitor is not None:
                    monitor.add_loss(run.losses[-1])
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
    """The progress bar; none if the output is not a terminal, which gets lines instead."""
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


def _check_paths(options: Options, plot_given: bool) -> None:
    """Fail unless plot and model can be written without replacing files, or with --force."""
    check_plot_path(options.plot)
    if plot_given:
        check_new_file("--plot", options.plot, options.force)
    if options.monitor:
        check_monitor_paths(options.plot, options.force)
    path = options.save
    if path is None:
        return
    check_directory_path("--save", path)
    found = [name for name in FILES if (path / name).exists()]
    if found and not options.force:
        fail(f"--save {path}: holds {', '.join(found)} already; choose another name, or replace them with --force")


def _plot(path: Path, losses: list[float], unigram: float, flow: GradientFlow, title: str, console: Output) -> None:
    from .plots import save_training_figure

    save_training_figure(path, losses, unigram, flow, title)
    say(console, f"plot: {path}")
