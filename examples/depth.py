"""The gradient in stacks of 1 to 128 layers, before any training.

Each stack consists of MLPs with torch's default initial weights: plain, with LayerNorm or BatchNorm, with the residual
addition, with both, and with the addition of a branch that is scaled by one over the square root of the depth. Input
and d_output are random. The example measures the norm of dL/dx at the input of every block, and the share of the
gradient of one row's output that belongs to other rows of the batch: zero except with BatchNorm.

    python examples/depth.py --plot depth.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import throughtime as tt
from common import run_command
from throughtime.cli.output import check_plot_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

_SIZE, _HIDDEN = 64, 128
_COUPLED = 8  # blocks of the stacks in `coupling`
_STEPS, _BATCH = 8, 4  # so small that OpenBLAS uses one thread: on a busy machine, two wait for each other


@dataclass(frozen=True)
class Variant:
    """The kind of blocks in a stack."""

    norm: str | None
    residual: bool
    scaled: bool = False
    normalisation: str = "layer"

    def stack(self, depth: int, seed: int) -> tt.Sequential:
        """A stack of `depth` blocks; the weights of the MLPs are the same in every variant."""
        scale = depth**-0.5 if self.scaled else 1.0
        return tt.Sequential(
            *(
                tt.ResidualBlock(
                    tt.MLP(_SIZE, _HIDDEN, seed=[seed, block]),
                    _SIZE,
                    norm=self.norm,
                    residual=self.residual,
                    branch_scale=scale,
                    normalisation=self.normalisation,
                )
                for block in range(depth)
            )
        )


VARIANTS = {
    "plain": Variant(norm=None, residual=False),
    "LayerNorm only": Variant(norm="pre", residual=False),
    "BatchNorm only": Variant(norm="pre", residual=False, normalisation="batch"),
    "residual only": Variant(norm=None, residual=True),
    "both": Variant(norm="pre", residual=True),
    "both, BatchNorm": Variant(norm="pre", residual=True, normalisation="batch"),
    "residual/sqrt(L)": Variant(norm=None, residual=True, scaled=True),
}


def measure(variant: Variant, depth: int, seed: int) -> Array:
    """log10 of the norm of dL/dx at every block, from the first on, for a random input and a random d_output."""
    rng = np.random.default_rng([seed, 1])
    x, d_output = (rng.standard_normal((_STEPS, _BATCH, _SIZE)).astype(np.float32) for _ in range(2))
    return tt.gradient_flow(variant.stack(depth, seed), x, d_output).depth_log10_norm[:-1]


def coupling(variant: Variant, depth: int, seed: int) -> float:
    """The share of the squared gradient of one row's output, with respect to x, that belongs to other rows."""
    rng = np.random.default_rng([seed, 1])
    x, d_output = (rng.standard_normal((_STEPS, _BATCH, _SIZE)).astype(np.float32) for _ in range(2))
    d_output[1:], d_output[0, 1:] = 0, 0
    squares = variant.stack(depth, seed).forward(x).backward(d_output).input.astype(np.float64) ** 2
    return float(1 - squares[0, 0].sum() / squares.sum())


def main(
    max_depth: Annotated[int, typer.Option(min=1, help="Largest depth; depths are powers of two.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, input and d_output.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="File of the plot.", show_default=False)] = None,
) -> None:
    """Show the gradient at every block of deep stacks, plain, with LayerNorm, residual, and both."""
    if plot is not None:
        check_plot_path(plot)
    depths = [1 << power for power in range(max_depth.bit_length())]
    console = Console()
    measured = {
        name: {depth: measure(variant, depth, seed) for depth in depths}
        for name, variant in track(VARIANTS.items(), "measuring", console=console, disable=not console.is_terminal)
    }
    console.print(table(measured))
    console.print(coupling_table(seed))
    if plot is not None:
        save_figure(plot, measured)


def table(measured: dict[str, dict[int, Array]]) -> Table:
    """One row per depth, one column per variant."""
    table = Table(title="log10 of the gradient's norm at the first block relative to the last", padding=(0, 0, 0, 1))
    table.add_column("blocks", justify="center")
    for name in measured:
        table.add_column(name.replace(" ", "\n").replace("/", "/\n"), justify="right")
    for depth in next(iter(measured.values())):
        table.add_row(str(depth), *(f"{_ratio(by_depth[depth]):z.2f}" for by_depth in measured.values()))
    return table


def coupling_table(seed: int) -> Table:
    """One row per variant that has a norm."""
    table = Table(title="Share of one row's gradient in other rows")
    table.add_column(f"{_COUPLED} blocks, {_STEPS * _BATCH} rows")
    table.add_column("share of the square", justify="right")
    for name, variant in VARIANTS.items():
        if variant.norm is not None:
            table.add_row(name, f"{coupling(variant, _COUPLED, seed):z.3f}")
    return table


def _ratio(log10_norms: Array) -> float:
    """log10 of the ratio of the first to the last."""
    return float(log10_norms[0] - log10_norms[-1])


def save_figure(path: Path, measured: dict[str, dict[int, Array]]) -> None:
    """Left: norms at each block of the deepest stack. Right: ratios by depth. Below: without the plain stack."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle("Gradient in stacks of MLPs with default initial weights")
    for (left, right), shown in zip(figure.subplots(2, 2), (VARIANTS, list(VARIANTS)[1:]), strict=True):
        for name in shown:
            _draw(left, right, name, measured[name])
        depth = max(measured["plain"])
        but = "" if "plain" in shown else ", without the plain stack"
        left.set(
            title=f"{depth} blocks{but}", xlabel="block (1: next to the input)", ylabel="norm of dL/dx (log scale)"
        )
        right.set(
            title=f"First block over last{but}", xlabel="blocks (log scale)", ylabel="log10 of the ratio of norms"
        )
        right.set_xscale("log", base=2)
        right.set_xticks(list(measured["plain"]), [str(depth) for depth in measured["plain"]])
        right.legend(handlelength=4)
        for axes in (left, right):
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def _draw(left: Axes, right: Axes, name: str, by_depth: dict[int, Array]) -> None:
    index, depth = list(VARIANTS).index(name), max(by_depth)
    dashes = ("--", "-.", (0, (5, 1)), (0, (1, 2)), "-", (0, (3, 1, 1, 1)), (0, (6, 2, 1, 2, 1, 2)))
    style = {"linestyle": dashes[index], "color": f"C{index}"}
    style |= {"marker": "ovPsD*^"[index], "markersize": 5, "label": name}
    every = max(1, depth // 8)
    left.semilogy(range(1, depth + 1), 10 ** by_depth[depth], markevery=(index * every // 7, every), **style)
    right.plot(list(by_depth), [_ratio(log10_norms) for log10_norms in by_depth.values()], **style)


if __name__ == "__main__":
    run_command(main)
