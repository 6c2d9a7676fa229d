"""The common part of the examples with character models: text, baselines by counting, training, loss curves."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import typer
from numpy.typing import NDArray

import throughtime as tt
from common import MAX_NORM, SPAN, falling, progress_bar
from throughtime.cli.output import check_plot_path
from throughtime.cli.text import encode

# Options of the examples that train character models.
Context = Annotated[int, typer.Option(min=1, help="Characters per window.")]
Batch = Annotated[int, typer.Option(min=1, help="Windows per update.")]
Rate = Annotated[float, typer.Option(min=0, help="Learning rate of Adam at the start; falls to a tenth.")]

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

BITS = 1 / math.log(2)  # nats to bits
# Per model: they distinguish curves in black and white, and where curves overlap.
STYLES = ("--", "-", "-.")
MARKERS = "os^"
SIZES = (5, 8, 4)
_HELD_OUT = 0.1  # of the text, at its end
_VALIDATIONS = 10  # in a training


class Model(Protocol):
    """A model that `train` can train."""

    parameters: dict[str, Array]

    def __call__(self, ids: Array) -> Array:
        """Logits (T, B, characters) of the next character, for each of the characters (T, B)."""

    def gradients(self, inputs: Array, targets: Array) -> tuple[float, Mapping[str, Array]]:
        """The mean loss (nats) of characters (T, B), and the gradient of every parameter."""


@dataclass(frozen=True)
class Text:
    """Characters as integers: the training text, the held-out text, and the number of distinct characters."""

    training: Array
    held_out: Array
    characters: int

    def batch(self, rng: np.random.Generator, steps: int, batch: int) -> tuple[Array, Array]:
        """Inputs and targets (T, B) from random positions of the training text."""
        starts = rng.integers(0, len(self.training) - steps, batch)
        windows = self.training[np.arange(steps + 1)[:, None] + starts]
        return windows[:-1], windows[1:]

    def validation(self, steps: int) -> tuple[Array, Array]:
        """Inputs and targets (T, N): the held-out text in windows, one after the other."""
        count = (len(self.held_out) - 1) // steps
        inputs, targets = (self.held_out[skip : skip + count * steps].reshape(count, steps).T for skip in (0, 1))
        return inputs, targets


def python_help() -> Text:
    """The text of Python's ``help()`` topics without repeated paragraphs, which are a fifth of it."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys("\n".join(topics.values()).split("\n\n"))  # else 8 % of the held-out text would be known
    vocabulary, ids = encode("\n\n".join(paragraphs))
    cut = round(len(ids) * (1 - _HELD_OUT))
    return Text(ids[:cut], ids[cut:], len(vocabulary))


def counted(text: Text, steps: int) -> dict[str, float]:
    """The held-out loss (nats) of models that count single characters and pairs, with add-one smoothing."""
    inputs, targets = text.validation(steps)
    single = np.bincount(text.training, minlength=text.characters) + 1.0
    pairs = np.ones((text.characters, text.characters))
    np.add.at(pairs, (text.training[:-1], text.training[1:]), 1)
    return {
        "unigram": float(-np.log(single / single.sum())[targets].mean()),
        "bigram": float(-np.log(pairs / pairs.sum(axis=1, keepdims=True))[inputs, targets].mean()),
    }


@dataclass
class Run:
    """The history of a training; losses in nats."""

    losses: list[float] = field(default_factory=list)  # of each step
    validation: dict[int, float] = field(default_factory=dict)  # by step
    seconds: float = 0.0

    def recent(self, step: int | None = None) -> float:
        """The mean training loss of the last SPAN steps up to `step`."""
        last = self.losses[:step][-SPAN:]
        return sum(last) / len(last) if last else math.nan

    @property
    def final(self) -> float:
        """The loss on the held-out text after the last step."""
        return self.validation[len(self.losses)]


def train(model: Model, text: Text, name: str, *, steps: int, window: int, batch: int, lr: float, seed: int) -> Run:
    """Adam with a learning rate that falls to a tenth, on random windows that depend only on the seed."""
    run, rng, optimizer, start = Run(), np.random.default_rng(seed), tt.optim.Adam(lr=lr), time.perf_counter()
    every = max(1, steps // _VALIDATIONS)
    with progress_bar("{task.fields[loss]:.3f} nats") as progress:
        task = progress.add_task(name, total=steps, loss=math.nan)
        for step in range(1, steps + 1):
            loss, grads = model.gradients(*text.batch(rng, window, batch))
            tt.clip_grad_norm(grads, MAX_NORM)
            optimizer.lr = falling(lr, step, steps)
            optimizer.step(model.parameters, grads)
            run.losses.append(loss)
            if step % every == 0 or step == steps:
                run.validation[step] = validation_loss(model, text, window)
            progress.update(task, advance=1, loss=run.recent())
    run.seconds = time.perf_counter() - start
    return run


def validation_loss(model: Model, text: Text, window: int) -> float:
    """The mean loss (nats) on the held-out text, in windows without carried state."""
    inputs, targets = text.validation(window)
    total = 0.0
    for columns in _parts(inputs.shape[1], 128):
        loss, _ = tt.cross_entropy(model(inputs[:, columns]), targets[:, columns])
        total += loss * targets[:, columns].size
    return total / targets.size


def prepare(plot: Path | None, text: Text, window: int) -> None:
    """Check the options before the training starts."""
    if plot is not None:
        check_plot_path(plot)
    if window >= len(text.held_out):
        raise SystemExit(
            f"--context {window}: expected less than {len(text.held_out)}, the length of the held-out text"
        )


def draw_losses(axes: Axes, runs: Mapping[str, Run], counts: Mapping[str, float]) -> None:
    """Training losses as lines, held-out losses as marks, counting models as level lines; bits per character."""
    for index, (name, run) in enumerate(runs.items()):
        line = {"color": f"C{index}", "linestyle": STYLES[index]}
        marks = {"color": f"C{index}", "marker": MARKERS[index], "markersize": SIZES[index], "fillstyle": "none"}
        steps = np.arange(1, len(run.losses) + 1)
        axes.plot(steps, [run.recent(step) * BITS for step in steps], **line)
        axes.plot(list(run.validation), np.array(list(run.validation.values())) * BITS, linestyle="", **marks)
        axes.plot([], [], label=name, **{**line, **marks})
    for (name, loss), style in zip(counts.items(), (":", (0, (1, 4))), strict=True):
        axes.axhline(loss * BITS, color="black", linestyle=style, label=f"{name} counts ({loss * BITS:.2f})")
    axes.set(title="Loss", xlabel="step (parameter updates)", ylabel="loss (bits per character)")
    axes.grid(alpha=0.3)
    title = f"lines: training, mean of {SPAN} steps; marks: held out"
    axes.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, handlelength=4)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
