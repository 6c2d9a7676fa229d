"""`throughtime flow`: the gradient at every timestep of several cells and stacks, or of a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich import box
from rich.table import Table

import throughtime as tt
from throughtime.analysis.flow_result import COLUMNS, GradientFlow, StackFlow, factor_text, fault_text

from .character_model import CharacterModel
from .errors import fail
from .flow_models import INPUT_SIZE, MODELS, WEIGHTS, Sizes, build, lowest
from .options import Force, given, with_options
from .output import Output, check_new_file, check_plot_path, say
from .text import read_ids, stretches, text_name

Array = NDArray[Any]

_NOTE = (
    "start: last step; end: first step; gamma: mean factor per step back; "
    "horizon(f): steps back until the norm is below f times that of the start."
)
_MODELS_OWN = {"hidden": "its own units", "layers": "its own layers", "seed": "nothing random"}


@dataclass
class Options:
    """The command's options."""

    steps: Annotated[int, typer.Option(min=2, help="Timesteps of the sequence.")] = 1000
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = 64
    layers: Annotated[int, typer.Option(min=1, help="LSTM layers of the stacks.")] = 8
    batch: Annotated[int, typer.Option(min=1, help="Sequences; norms are over all of them.")] = 4
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and sequence.")] = 0
    text: Annotated[
        Path | None, typer.Option(help="Run on this UTF-8 text instead of random numbers.", show_default=False)
    ] = None
    model: Annotated[
        Path | None,
        typer.Option(help="Show and diagnose this model, written by `throughtime train --save`.", show_default=False),
    ] = None
    plot: Annotated[Path, typer.Option(help="File for the plot; if you name one that exists, --force replaces it.")] = (
        Path("throughtime-flow.png")
    )
    force: Force = False


@with_options
def flow(context: typer.Context, options: Options) -> None:
    """Show the gradient at every timestep, with a loss on the last step only.

    RNN, GRU, LSTM, LSTM with LayerNorm, and stacks of LSTMs without and with residual additions run on the same random
    sequence, with default weights (torch's) and with good ones: recurrent weights orthogonal, gate biases for memories
    as long as the sequence (chrono), other biases zero. Or, with --model, a trained character model on a text (without
    --text that of Python's help()), with a diagnosis in words: what keeps it from learning, and a remedy that measures
    better.
    """
    check_plot_path(options.plot)
    if given(context, "plot"):
        check_new_file("--plot", options.plot, options.force)
    console = Output()
    if options.model is None:
        _compare(console, options)
        return
    for option, what in _MODELS_OWN.items():
        if given(context, option):
            fail(f"--{option}: a saved model has {what}; --model goes with --steps, --batch, --text and --plot")
    _look(console, options.model, options)


def _compare(console: Output, options: Options) -> None:
    x = _inputs(options.text, options.steps, options.batch, options.seed)
    sizes = Sizes(options.hidden, options.layers, options.seed)
    flows = {
        name: {weights: tt.gradient_flow(build(name, weights, sizes, len(x)), x) for weights in WEIGHTS}
        for name in MODELS
    }
    about = f"loss on the last of {len(x)} steps, {options.hidden} units"
    console.print(_table(flows, f"log10 of the norm of dL/dh_t: {about}"))
    say(console, f"{_NOTE} For a stack: in its first LSTM.")
    for name, of_weights in flows.items():
        for weights, found in of_weights.items():
            _say_fault(console, f"{name}, {weights} weights: ", found)
    console.print(_depth_table(flows, options.layers))
    from .plots import save_flow_figure

    save_flow_figure(options.plot, flows, f"Gradient flow: {about}")
    say(console, f"plot: {options.plot}")


def _look(console: Output, path: Path, options: Options) -> None:
    text, steps = options.text, options.steps
    model = CharacterModel.load(path, "--model")
    ids = _known(console, model.vocabulary, text)
    if len(ids) <= steps:
        fail(f"{text_name(text)} has {len(ids)} characters that the model knows, --steps {steps} needs {steps + 1}")
    read = stretches(ids, steps + 1, options.batch)
    found = model.flow(read)
    title = f"{path}: {model.recurrent!r} on {text_name(text)}, loss on the character after {steps}"
    table = _new_table("log10 of the norm of dL/dh_t", "layer")
    for row, name in enumerate(found.names):
        table.add_row(name, *found.cells(row))
    say(console, title)
    console.print(table)
    say(console, _NOTE)
    _say_fault(console, "", found)
    say(console, f"\n{model.diagnosis(read)}\n", keep="\n")
    from .plots import save_model_figure

    save_model_figure(options.plot, found, title)
    say(console, f"plot: {options.plot}")


def _say_fault(console: Output, whose: str, flow: GradientFlow) -> None:
    if flow.fault is not None:
        say(console, whose + fault_text(flow.fault))


def _inputs(text: Path | None, steps: int, batch: int, seed: int) -> Array:
    """The sequences (steps, batch, features): random numbers, or a text's characters in a random embedding."""
    if text is None:
        return np.random.default_rng(seed).standard_normal((steps, batch, INPUT_SIZE), dtype=np.float32)
    vocabulary, ids = read_ids(text)
    if len(ids) < steps:
        fail(f"{text} has {len(ids)} characters, --steps {steps} needs at least {steps}")
    return tt.Embedding(len(vocabulary), INPUT_SIZE, seed=seed)(stretches(ids, steps, batch))


def _known(console: Output, vocabulary: str, text: Path | None) -> Array:
    """The text as the model's indices, without characters that the model does not know."""
    found, ids = read_ids(text)
    number = {character: index for index, character in enumerate(vocabulary)}
    smallest = np.promote_types(np.int8, np.min_scalar_type(len(vocabulary)))
    numbers = np.array([number.get(character, -1) for character in found], smallest)[ids]
    strange = [character for character in found if character not in number]
    if strange:
        shown = ", ".join(map(repr, strange[:10])) + (", ..." if len(strange) > 10 else "")
        say(console, f"{(numbers < 0).sum():,} of {len(ids):,} characters left out, unknown to the model: {shown}")
    return numbers[numbers >= 0]


def _table(flows: Mapping[str, Mapping[str, GradientFlow]], title: str) -> Table:
    table = _new_table(title, "model", "weights")
    for name, of_weights in flows.items():
        for weights, found in of_weights.items():
            table.add_row(name, weights, *lowest(found).cells(0))
    return table


def _new_table(title: str, *names: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace("(", "\n("), justify="right", no_wrap=True)
    return table


def _depth_table(flows: Mapping[str, Mapping[str, GradientFlow]], layers: int) -> Table:
    """The gradient of the first LSTM's input over that of the output."""
    title = f"Gradient of the first of {layers} layers' input, over that of the output"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for weights in WEIGHTS:
        table.add_column(weights, justify="right")
    for name, of_weights in flows.items():
        depths = [found.depth_log10_norm for found in of_weights.values() if isinstance(found, StackFlow)]
        if depths:
            table.add_row(name, *(factor_text(depth[1] - depth[-1]) for depth in depths))
    return table
