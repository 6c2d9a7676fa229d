"""Figures of `train` and `flow`. Legible in black and white."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from throughtime._files import save_figure
from throughtime._text import visible
from throughtime.analysis.flow_figures import (
    draw_curve,
    draw_depth,
    label_curves,
    label_depth,
    legend_in_headroom,
    literal,
)
from throughtime.analysis.flow_result import GradientFlow, StackFlow
from throughtime.monitor.figures import draw_losses

from .flow_models import WEIGHTS, lowest


def save_training_figure(path: Path, losses: Sequence[float], unigram: float, flow: GradientFlow, title: str) -> None:
    """On the left the loss per step (bits per character), on the right the gradient per timestep."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2)
    _draw_losses(left, losses, unigram)
    flow.plot(right)
    right.set_title("Gradient flow after training, loss on the last step only")
    _save(figure, path)


def save_model_figure(path: Path, flow: GradientFlow, title: str) -> None:
    """Curves and heat maps of one model."""
    figure = flow.plot()
    figure.suptitle(literal(visible(title)), wrap=True)
    _save(figure, path)


def save_flow_figure(path: Path, flows: Mapping[str, Mapping[str, GradientFlow]], title: str) -> None:
    """Norms over time, a panel per choice of initial weights and a curve per model; for stacks also over depth."""
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    figure.suptitle(title)
    *panels, depth = figure.subplots(1, len(WEIGHTS) + 1, width_ratios=(*(1.2 for _ in WEIGHTS), 1))
    for weights, axes in zip(WEIGHTS, panels, strict=True):
        axes.sharey(panels[0])
        for place, (name, of_weights) in enumerate(flows.items()):
            flow = of_weights[weights]
            draw_curve(axes, lowest(flow).log10_norm[0], name, place)
        axes.set_title(f"{weights.capitalize()} weights")
    for axes in panels:
        label_curves(axes, "dL/dh_t", next(iter(flows.values()))[WEIGHTS[0]].log10_norm.shape[1])
    _draw_depths(depth, flows)
    look: dict[str, Any] = {"handlelength": 4, "fontsize": "small"}
    figure.legend(handles=_handles(*panels), loc="outside lower left", ncols=3, **look)
    figure.legend(handles=_handles(depth), loc="outside lower right", ncols=2, **look)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Characters that the font lacks are drawn as boxes, without a warning: the user chose the names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        save_figure(figure, path)


def _handles(*panels: Axes) -> list[Artist]:
    """The legend entries of all panels, one per name."""
    named = {line.get_label(): line for axes in panels for line in axes.get_legend_handles_labels()[0]}
    return list(named.values())


def _draw_depths(axes: Axes, flows: Mapping[str, Mapping[str, GradientFlow]]) -> None:
    """For each stack and choice of weights, the gradient of each recurrent layer's input, and of the output."""
    rows = 0
    for place, (name, of_weights) in enumerate(flows.items()):
        for (weights, flow), width in zip(of_weights.items(), (1.0, 2.5), strict=True):
            if isinstance(flow, StackFlow):
                norms = flow.depth_log10_norm[1:]  # without the input of the Linear
                draw_depth(axes, norms, f"{name}, {weights}", place, linewidth=width)
                rows = len(norms)
    step = 1 + rows // 20
    axes.set_yticks(
        [*range(0, rows - 1, step), rows - 1], [*(f"into LSTM {1 + row}" for row in range(0, rows - 1, step)), "output"]
    )
    axes.invert_yaxis()
    axes.set_title("Stacks: over depth")
    label_depth(axes)


def _draw_losses(axes: Axes, losses: Sequence[float], unigram: float) -> None:
    draw_losses(axes, losses)
    axes.axhline(unigram, color="black", linestyle=":", label=f"unigram baseline ({unigram:.2f})")
    axes.set(title="Training loss", xlabel="step (parameter updates)", ylabel="loss (bits per character)")
    legend_in_headroom(axes, axes.get_legend_handles_labels()[0])
