"""The two figures: loss and gradient of a training, and gradients side by side. Legible in black and white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[Any]

_STYLES = ("-", "--", "-.", ":")


def save_training_figure(path: Path, losses: Sequence[float], unigram: float, norms: Array, title: str) -> None:
    """Left the loss per step (bits per character), right the norms (L, T) of dL/dh_t."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _draw_losses(left, losses, unigram)
    for layer, row in enumerate(norms):
        _draw_norms(right, row, f"layer {layer}", linestyle=_STYLES[layer % len(_STYLES)], color=f"C{layer}")
    _label_norms(right, "Gradient flow after training, loss on the last step only")
    figure.savefig(path, dpi=150)


def save_flow_figure(path: Path, norms: Mapping[str, Mapping[str, Array]], title: str) -> None:
    """One curve of norms (T,) per cell (line style) and choice of initial weights (line width)."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for index, (cell, curves) in enumerate(norms.items()):
        for (weights, row), width in zip(curves.items(), (1.0, 2.5), strict=True):
            _draw_norms(axes, row, f"{cell}, {weights}", linestyle=_STYLES[index], color=f"C{index}", linewidth=width)
    _label_norms(axes, title)
    figure.savefig(path, dpi=150)


def _draw_losses(axes: Axes, losses: Sequence[float], unigram: float) -> None:
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="0.7", linewidth=0.8, label="each step")
    span = max(1, len(losses) // 40)
    smooth = np.convolve(losses, np.full(span, 1 / span), mode="valid")
    axes.plot(steps[span - 1 :], smooth, color="black", linewidth=1.8, label=f"mean of {span} steps")
    axes.axhline(unigram, color="black", linestyle=":", label=f"unigram baseline ({unigram:.2f})")
    axes.set(title="Training loss", xlabel="step (parameter updates)", ylabel="loss (bits per character)")
    axes.grid(alpha=0.3)
    axes.legend(handlelength=3.5)


def _draw_norms(axes: Axes, norms: Array, label: str, **style: Any) -> None:
    shown = np.where(norms > 0, norms, np.nan)  # zero has no place on a log axis
    axes.semilogy(np.arange(len(shown)), shown, label=label, **style)


def _label_norms(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="timestep t", ylabel=r"norm of dL/dh$_t$ (log scale)")
    axes.grid(alpha=0.3)
    axes.legend(handlelength=3.5)
