"""`throughtime train --monitor`: a monitor of the recurrent layers, its terminal line, its picture and its page."""

from __future__ import annotations

from pathlib import Path

import throughtime as tt
from throughtime.monitor.terminal import TerminalLine

from .output import Output, check_new_file, say

_EVERY, _RECORDS = 50, 10  # updates from one record to the next; fewer if there would be fewer records than that


def monitor_paths(plot: Path) -> tuple[Path, Path]:
    """The picture and the page, named after the plot."""
    return plot.with_name(f"{plot.stem}-monitor.png"), plot.with_name(f"{plot.stem}-monitor.html")


def check_monitor_paths(plot: Path, force: bool) -> None:
    """Fail unless both files can be written, and neither exists or both may be replaced."""
    for path in monitor_paths(plot):
        check_new_file("--monitor", path, force)


def new_monitor(layer: tt.RNN | tt.GRU | tt.LSTM, steps: int, console: Output) -> tt.FlowMonitor:
    """Watches this many updates of the layer."""
    every = max(1, min(_EVERY, steps // _RECORDS))
    return tt.FlowMonitor(layer, every, [TerminalLine(console)], range="full")


def save_monitor(monitor: tt.FlowMonitor, plot: Path, console: Output) -> None:
    """Write both files, if there is a record."""
    if not monitor.history:
        return
    picture, page = monitor_paths(plot)
    monitor.plot(picture)
    monitor.save_html(page, force=True)  # whether it may be replaced was checked before the training
    say(console, f"monitor: {picture}, {page}")
