"""A line of block characters for every record: the gradient by lag, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arguments import Array
from .._text import visible
from .flow_record import FlowRecord

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["TerminalLine"]

_BLOCKS, _DIGITS = "▁▂▃▄▅▆▇█", "12345678"  # digits on terminals without block characters
_ZERO, _BROKEN = ".", "!"


class TerminalLine:
    """A sink that prints one line per layer and direction; needs rich.

    A character is a lag. The full block is the largest norm of the line, and each level below it stands for a power of
    ten: the lowest block is 1e-7 of the largest, or less. ``.`` is exactly zero, ``!`` is not finite.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where the lines go; by default the standard output. That of a progress bar prints above the bar.

    Raises
    ------
    ImportError
        If rich is not installed.

    Examples
    --------
    >>> from throughtime.monitor.terminal import TerminalLine
    >>> from rich.console import Console
    >>> x, layer = np.ones((500, 1, 4), np.float32), tt.RNN(4, 8, nonlinearity="relu", seed=0)
    >>> for parameter in layer.parameters.values():
    ...     parameter[...] = 0.9 * np.eye(*parameter.shape) if parameter.ndim == 2 else 1
    >>> with tt.FlowMonitor(layer, range="full", sinks=[TerminalLine(Console(width=80))]):
    ...     tape = layer.forward(x)
    ...     grads = tape.backward(tape.output)
    step 0  RNN  lag 0 █████▇▆▃▁▁ 499  gamma 0.9  horizon 66
    """

    def __init__(self, console: Console | None = None) -> None:
        try:
            from rich.console import Console
            from rich.text import Text
        except ModuleNotFoundError as error:
            raise ImportError(
                f'TerminalLine needs rich ({error}): pip install rich, or pip install "throughtime[cli]"'
            ) from error
        self.console = Console() if console is None else console
        self._text: Any = Text

    def __call__(self, record: FlowRecord) -> None:
        """Print the record."""
        levels = _BLOCKS if _can_show(self.console.encoding, _BLOCKS) else _DIGITS
        for row in range(len(record.rows)):
            line = line_of(record, row, levels).encode(self.console.encoding, "replace").decode(self.console.encoding)
            self.console.print(self._text(line), soft_wrap=True)


def line_of(record: FlowRecord, row: int, levels: str = _BLOCKS) -> str:
    """The line of one row."""
    lags = f"lag 0 {_bar(record.log10_norm[row], levels)} {record.lags[-1]}" if record.lags.size else "no timesteps"
    fault = "" if record.fault is None else f"  not finite: {record.fault}"
    horizon = record.horizon[row]
    numbers = f"gamma {record.gamma[row]:.3g}  horizon {'never' if horizon == np.inf else f'{horizon:.0f}'}"
    return visible(f"step {record.step}  {record.place(row)}  {lags}  {numbers}{fault}")


def _bar(norms: Array, levels: str) -> str:
    finite = np.isfinite(norms)
    largest = np.max(norms, where=finite, initial=-np.inf)
    signs = [_ZERO if norm == -np.inf else _BROKEN for norm in norms]
    for i in np.flatnonzero(finite):
        signs[i] = levels[max(0, len(levels) - 1 - round(largest - norms[i]))]
    return "".join(signs)


def _can_show(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
