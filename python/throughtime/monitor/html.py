"""A monitor as one HTML file: figures as PNGs inside it, the last records as a table, and captions."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._plotting import needing_matplotlib
from .._text import counted, visible
from ..analysis.notebook import image, png
from ..analysis.thinning import spread
from .flow_record import FlowRecord
from .series import Monitor, Series, series_of

_TITLE = "Gradient through time during training"
_PIXELS = 1120  # of a picture's width, twice what a page shows

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --back: #ffffff; --faint: #5a5a60; --line: #c9c9cf; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8ea; --back: #17171a; --faint: #a5a5ad; --line: #47474f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1180px; margin: 0 auto; padding: 12px 16px 32px; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
p, figcaption { max-width: 75ch; } figcaption, .faint { color: var(--faint); font-size: 0.9rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
figure { margin: 0; max-width: 620px; } figure img { width: 100%; border-radius: 4px; background: #ffffff; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); }
tbody th { overflow-wrap: anywhere; min-width: 8em; }
@media (max-width: 900px) {
  thead { display: none; } table, tbody, tr, td, th { display: block; } tr { padding: 10px 0; }
  td { display: flex; justify-content: space-between; gap: 12px; padding: 3px 0; text-align: right; }
  td::before { content: attr(data-label); color: var(--faint); text-align: left; }
}
"""
_SUBJECT = {
    "full": "a loss on the last step, whatever the loss of the training is. Norms are exact far below and above the "
    "range of floats",
    "float": "the loss of the training, as its backward pass computed it. Norms below the range of floats are zero",
}
_LAGS = (
    "Each column is one measurement, each row a lag: the number of steps back from the end of the sequence. Light "
    "means a large gradient. If the upper rows are dark, a loss at the end teaches the network nothing about what "
    "happened that long before. Hatched cells are exactly zero, cross-hatched ones not finite."
)
_COURSE = (
    "gamma is the mean factor by which each step back multiplies the gradient's norm: below 1 the gradient vanishes, "
    "above 1 it explodes. horizon(1e-3) is the number of steps back after which less than a thousandth of the norm is "
    "left."
)
_LOSS = "Every loss that the training added, and their moving mean."
_COLUMNS = (
    ("step", "backward passes of the layer before this record"),
    ("timesteps", "of the longest sequence"),
    ("gamma", "mean factor per step back"),
    ("horizon", "steps back until a thousandth is left"),
    ("norm at lag 0", "of dL/dh at the end of the sequence"),
    ("norm at the last lag", "of dL/dh at the other end"),
    ("zero at lag 100", "share of units without any gradient there"),
    ("cancellation", "the parameter whose timesteps cancel most: 1 if all agree, near 0 if they cancel"),
    ("clipped steps", "share of steps whose gradient was rescaled"),
    ("not finite", "where"),
)


def figures() -> Any:
    """Import the module that draws; it needs matplotlib."""
    with needing_matplotlib():
        from . import figures
    return figures


def page(monitor: Monitor) -> str:
    """The whole file."""
    draw, series = figures(), series_of(monitor.history)
    shown = [series[i] for i in spread(len(series), draw.ROWS)]
    layers = len({record.layer for record in monitor.history})
    steps = [record.step for record in monitor.history]
    some = "" if len(shown) == len(series) else f" Pictures show {len(shown)} of {len(series)} rows; the table has all."
    loss = f"<h2>Loss</h2>{_figure(draw.loss_panel(monitor.losses), 'Loss', _LOSS)}" if monitor.losses else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_TITLE}</title><style>{_STYLE}</style></head><body>
<h1>{_TITLE}</h1>
<p>{counted(len(monitor.history), "record")} of {counted(layers, "layer")}, from step {min(steps)} to step {max(steps)}.
The gradient is that of {_SUBJECT[monitor.range]}.{some}</p>
<h2>The last record of each layer</h2>{_table(series)}
{loss}{"".join(_pictures(draw, one, captions=one is shown[0]) for one in shown)}
<p class="faint">Written by throughtime.</p></body></html>
"""


def _pictures(draw: Any, series: Series, *, captions: bool) -> str:
    """The pictures of a series; the first one explains them."""
    name = visible(series.place)
    lags, course = draw.panels(series)
    return (
        f'<h2>{html.escape(name)}</h2><div class="pictures">'
        f"{_figure(lags, f'Norm of the gradient by step and lag of {name}', _LAGS if captions else '')}"
        f"{_figure(course, f'gamma and horizon over training of {name}', _COURSE if captions else '')}</div>"
    )


def _figure(figure: Any, description: str, caption: str) -> str:
    return f"<figure>{image(png(figure, _PIXELS), description)}<figcaption>{caption}</figcaption></figure>"


def _table(series: Sequence[Series]) -> str:
    head = "".join(
        f'<th scope="col" title="{html.escape(meaning)}">{html.escape(name)}</th>'
        for name, meaning in (("layer", "and direction"), *_COLUMNS)
    )
    rows = []
    for one in series:
        cells = zip(_COLUMNS, _cells(one.records[-1], one.row), strict=True)
        inner = "".join(f'<td data-label="{html.escape(name)}"><span>{cell}</span></td>' for (name, _), cell in cells)
        rows.append(f'<tr><th scope="row">{html.escape(visible(one.place))}</th>{inner}</tr>')
    notes = "; ".join(f"{html.escape(name)}: {html.escape(meaning)}" for name, meaning in _COLUMNS)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{table}</div><p class="faint">{notes}.</p>'


def _cells(record: FlowRecord, row: int) -> list[str]:
    """The contents of a row, as HTML."""
    horizon = float(record.horizon[row])
    norms = [_power(float(norm)) for norm in record.log10_norm[row][[0, -1]]] if record.lags.size else ["–", "–"]
    least = min(record.cancellation.items(), key=lambda item: item[1], default=None)
    return [
        str(record.step),
        str(record.steps),
        _number(float(record.gamma[row])),
        "never" if horizon == np.inf else _number(horizon),
        *norms,
        _share(float(record.zero_share[row])),
        "–" if least is None else f"{html.escape(visible(least[0]))} {_number(least[1])}",
        "–" if record.clipped_share is None else _share(record.clipped_share),
        "no" if record.fault is None else html.escape(visible(record.fault)),
    ]


def _power(log10: float) -> str:
    if log10 == -np.inf:
        return "0"
    return f"10<sup>{log10:z.1f}</sup>".replace("-", "−") if np.isfinite(log10) else "not finite"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4g}".replace("-", "−")


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1%}"
