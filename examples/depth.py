"""What becomes of the gradient in stacks of 1 to 128 layers, before any training.

Each stack is made of MLPs with torch's default initial weights: bare, with LayerNorm, with the residual addition, with
both, and with the addition of a branch that is scaled by one over the square root of the depth. Input and d_output are
random; what is measured is the norm of dL/dx at the entrance of every block.

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
_STEPS, _BATCH = 8, 4  # products that OpenBLAS leaves to one thread: on a busy machine, two wait for each other


@dataclass(frozen=True)
class Variant:
    """How the blocks of a stack are made."""

    norm: str | None
    residual: bool
    scaled: bool = False

    def stack(self, depth: int, seed: int) -> tt.Sequential:
        """So many blocks; the MLPs' weights are the same in every variant."""
        scale = depth**-0.5 if self.scaled else 1.0
        return tt.Sequential(
            *(
                tt.ResidualBlock(
                    tt.MLP(_SIZE, _HIDDEN, seed=[seed, block]),
                    _SIZE,
                    norm=self.norm,
                    residual=self.residual,
                    branch_scale=scale,
                )
                for block in range(depth)
            )
        )


VARIANTS = {
    "plain": Variant(norm=None, residual=False),
    "LayerNorm only": Variant(norm="pre", residual=False),
    "residual only": Variant(norm=None, residual=True),
    "both": Variant(norm="pre", residual=True),
    "residual/sqrt(L)": Variant(norm=None, residual=True, scaled=True),
}


def measure(variant: Variant, depth: int, seed: int) -> Array:
    """log10 of the norm of dL/dx at every block, the first first, for a random input and a random d_output."""
    rng = np.random.default_rng([seed, 1])
    x, d_output = (rng.standard_normal((_STEPS, _BATCH, _SIZE)).astype(np.float32) for _ in range(2))
    return tt.gradient_flow(variant.stack(depth, seed), x, d_output).depth_log10_norm[:-1]


def main(
    max_depth: Annotated[int, typer.Option(min=1, help="Depths are powers of two up to this one.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, input and d_output.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Where a plot goes.", show_default=False)] = None,
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
    if plot is not None:
        save_figure(plot, measured)


def table(measured: dict[str, dict[int, Array]]) -> Table:
    """One row per depth, one column per variant."""
    table = Table(title="log10 of the gradient's norm at the first block over that at the last")
    table.add_column("blocks", justify="right")
    for name in measured:
        table.add_column(name, justify="right")
    for depth in next(iter(measured.values())):
        table.add_row(str(depth), *(f"{_ratio(by_depth[depth]):z.2f}" for by_depth in measured.values()))
    return table


def _ratio(log10_norms: Array) -> float:
    """log10 of the first over the last."""
    return float(log10_norms[0] - log10_norms[-1])


def save_figure(path: Path, measured: dict[str, dict[int, Array]]) -> None:
    """Left the norms at each block of the deepest stack, right the ratios by depth; below without the plain stack."""
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
    style = {"linestyle": ("--", "-.", (0, (1, 2)), "-", (0, (6, 2, 1, 2, 1, 2)))[index], "color": f"C{index}"}
    style |= {"marker": "ovsD^"[index], "markersize": 5, "label": name}
    every = max(1, depth // 8)
    left.semilogy(range(1, depth + 1), 10 ** by_depth[depth], markevery=(index * every // 5, every), **style)
    right.plot(list(by_depth), [_ratio(log10_norms) for log10_norms in by_depth.values()], **style)


if __name__ == "__main__":
    run_command(main)
