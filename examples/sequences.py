"""The common part of the examples that answer at the end of a sequence: cells, training, the gradient by step."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

import throughtime as tt
from common import MAX_NORM, SPAN, falling, progress_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

# Options of these examples.
Hidden = Annotated[int, typer.Option(min=1, help="Units of the recurrent layer.")]
Size = Annotated[int, typer.Option(min=1, help="Sequences per update.")]

# Per cell: they distinguish lines in black and white.
STYLES = ((0, (1, 2)), "--", "-.", "-", (0, (6, 2, 1, 2, 1, 2)), (0, (4, 2)), "-")
MARKERS = "ovsDP^X"
_PART = 256  # sequences evaluated at once
_TESTS = 10  # evaluations during a training with `watch`
CAPTION = "before and after training: log10 of the norm of dL/dh at the first step relative to the last"
_LAYERS: dict[str, Any] = {"RNN": tt.RNN, "IRNN": partial(tt.RNN, nonlinearity="relu"), "GRU": tt.GRU, "LSTM": tt.LSTM}
_RECURRENT: dict[str, Any] = {"orthogonal": tt.init.orthogonal, "identity": tt.init.identity}


@dataclass(frozen=True)
class Batch:
    """Inputs (T, B, I), targets (B, ...), and the lengths of the sequences if they differ."""

    x: Array
    target: Array
    lengths: Array | None = None

    def part(self, start: int) -> Batch:
        """The sequences that are evaluated at once, from `start` on."""
        chosen = slice(start, start + _PART)
        lengths = None if self.lengths is None else self.lengths[chosen]
        return Batch(np.ascontiguousarray(self.x[:, chosen]), self.target[chosen], lengths)


class Task(Protocol):
    """A task of sequences with an answer at the end."""

    @property
    def inputs(self) -> int:
        """Features per step."""

    @property
    def outputs(self) -> int:
        """Features per answer."""

    def batch(self, rng: np.random.Generator, count: int) -> Batch:
        """`count` training sequences."""

    def loss(self, output: Array, target: Array) -> tuple[float, Array]:
        """The mean loss of outputs (B, outputs), and its gradient."""

    def right(self, output: Array, target: Array) -> Array:
        """Whether each output is right (B,)."""


class Classification:
    """A task whose answer is a class."""

    def loss(self, output: Array, target: Array) -> tuple[float, Array]:
        """Cross entropy, in nats."""
        return tt.cross_entropy(output, target)

    def right(self, output: Array, target: Array) -> Array:
        """Whether the largest output is that of the class."""
        correct: Array = output.argmax(axis=1) == target
        return correct


@dataclass(frozen=True)
class Cell:
    """A recurrent layer, its initial weights and the learning rate that suits it.

    With weights "torch" they are as the constructor draws them. Otherwise input weights are normal, biases zero, and
    the recurrent weights of each gate "orthogonal", or the "identity" as in Le et al. (2015). `keep` is the bias of the
    gate that keeps the old state (f of the LSTM, z of the GRU); "chrono" draws it as Tallec and Ollivier (2018) do.
    """

    kind: str
    lr: float
    weights: str = "orthogonal"
    input_deviation: float = 1.0
    keep: float | str = 0.0

    def layer(self, inputs: int, hidden: int, steps: int, rng: np.random.Generator) -> Any:
        """The layer, for sequences of `steps` steps."""
        layer = _LAYERS[self.kind](inputs, hidden, seed=rng)
        if self.weights == "torch":
            return layer
        own = {name.removesuffix("_l0"): array for name, array in layer.parameters.items()}
        gates = len(own["bias_ih"]) // hidden
        own["weight_hh"][...] = _RECURRENT[self.weights](own["weight_hh"].shape, rng, gates=gates)
        own["weight_ih"][...] = rng.normal(0, self.input_deviation, own["weight_ih"].shape)
        own["bias_ih"][...] = own["bias_hh"][...] = 0
        if self.keep == "chrono":
            own["bias_ih"][...] = tt.init.chrono(own["bias_ih"].shape, rng, steps, cell=self.kind.lower())
        elif gates > 1:
            own["bias_ih"][hidden : 2 * hidden] = self.keep
        return layer


class Model:
    """A recurrent layer, then a Linear on its last output."""

    def __init__(self, cell: Cell, task: Task, hidden: int, steps: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.layer = cell.layer(task.inputs, hidden, steps, rng)
        self.readout = tt.Linear(hidden, task.outputs, seed=rng)
        self.parameters = _named(self.layer, self.readout)

    def __call__(self, batch: Batch) -> Array:
        """The answers (B, outputs), with as little memory as possible."""
        parts = (batch.part(start) for start in range(0, len(batch.target), _PART))
        return np.concatenate([self.readout(self._read(part, memory="checkpoint").output) for part in parts])

    def gradients(self, task: Task, batch: Batch) -> tuple[float, Array, dict[str, Array]]:
        """The mean loss, the outputs, and the gradient of every parameter."""
        tape = self._read(batch)
        readout = self.readout.forward(tape.output)
        loss, d_output = task.loss(readout.output, batch.target)
        above = readout.backward(d_output)
        return loss, readout.output, _named(tape.backward(above.input, timesteps=()), above)

    def _read(self, batch: Batch, memory: str = "full") -> Any:
        return self.layer.forward(batch.x, lengths=batch.lengths, output="last", memory=memory)


def _named(layer: Any, readout: Any) -> dict[str, Array]:
    parts = {"layer": layer, "readout": readout}
    return {f"{part}.{name}": array for part, own in parts.items() for name, array in own.parameters.items()}


def log10_gradient(layer: Any, batch: Batch) -> Array:
    """log10 of the norm of dL/dh_t by step (T,), relative to that at the end of the sequences, where dL/dh is ones."""
    flow = tt.gradient_flow(layer, batch.x, lengths=batch.lengths)
    log10_norm: Array = flow.log10_norm[0] - math.log10(math.sqrt(batch.x.shape[1] * layer.hidden_size))
    return log10_norm


@dataclass
class Run:
    """The history of a training."""

    size: int  # sequences per update
    before: Array  # `log10_gradient` before the first update
    after: Array  # and after the last one
    losses: list[float] = field(default_factory=list)  # of each update
    shares: list[float] = field(default_factory=list)  # of right answers in each update's batch, before the update
    tests: dict[int, float] = field(default_factory=dict)  # share of right test answers, by number of updates
    output: Array = field(default_factory=lambda: np.zeros(0))  # on the test sequences, at the end
    seconds: float = 0.0

    @property
    def updates(self) -> int:
        """The number of updates."""
        return len(self.losses)

    @property
    def sequences(self) -> int:
        """The number of training sequences."""
        return self.updates * self.size

    @property
    def right(self) -> float:
        """The share of right test answers at the end."""
        return self.tests[self.updates]


def train(
    cell: Cell,
    task: Task,
    test: Batch,
    name: str,
    *,
    hidden: int,
    steps: int,
    updates: int,
    size: int,
    seed: int,
    enough: int | None = None,
    watch: bool = False,
) -> Run:
    """Adam with a learning rate that falls to a tenth, on batches that depend only on the seed.

    Training stops early once `enough` consecutive sequences were answered right. The test sequences are evaluated at
    the end, and with `watch` also during training.
    """
    model, rng, optimizer = Model(cell, task, hidden, steps, seed), np.random.default_rng([seed, 1]), tt.optim.Adam()
    before = log10_gradient(model.layer, test.part(0))
    run, start, since = Run(size, before, before), time.perf_counter(), 0
    with progress_bar("{task.fields[right]:.1%} right") as progress:
        bar = progress.add_task(name, total=updates, right=math.nan)
        recent: deque[float] = deque(maxlen=SPAN)
        for step in range(1, updates + 1):
            batch = task.batch(rng, size)
            loss, output, grads = model.gradients(task, batch)
            tt.clip_grad_norm(grads, MAX_NORM)
            optimizer.lr = falling(cell.lr, step, updates)
            optimizer.step(model.parameters, grads)
            recent.append(float(task.right(output, batch.target).mean()))
            run.losses.append(loss)
            run.shares.append(recent[-1])
            since = since + size if recent[-1] == 1 else 0
            if watch and step % max(1, updates // _TESTS) == 0:
                run.tests[step] = float(task.right(model(test), test.target).mean())
            progress.update(bar, advance=1, right=sum(recent) / len(recent))
            if enough is not None and since >= enough:
                break
    run.after = log10_gradient(model.layer, test.part(0))
    run.output = model(test)
    run.tests[run.updates] = float(task.right(run.output, test.target).mean())
    run.seconds = time.perf_counter() - start
    return run


def literature(title: str, rows: list[tuple[str, str, str]]) -> Table:
    """Published results and those found here: source, theirs, ours."""
    table = Table(title=title, show_lines=True)
    for column in ("source", "reported", "here"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table


def line_style(index: int) -> dict[str, Any]:
    """Colour, line style and marker of a cell."""
    return {
        "color": f"C{index}",
        "linestyle": STYLES[index],
        "marker": MARKERS[index],
        "markersize": 6,
        "fillstyle": "none",
    }


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, below them, with lines long enough to tell styles apart."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=4)
