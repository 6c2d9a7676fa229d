"""Results in notebooks: a small picture, and the text."""

from __future__ import annotations

import html
import warnings
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 900  # pixels
_Shown = TypeVar("_Shown", str, bytes)


def in_notebook(make: Callable[[], _Shown]) -> _Shown | None:
    """Return the result of `make`; None without matplotlib, so that the notebook shows the `repr`."""
    try:
        return make()
    except ImportError:
        return None


def png(figure: Figure, width: int = _WIDTH) -> bytes:
    """The figure, this many pixels wide. Characters that the font lacks are boxes, without a warning."""
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", dpi=width / figure.get_figwidth())
    return file.getvalue()


def image(data: bytes, description: str) -> str:
    """An element of HTML with the picture inside."""
    source = f"data:image/png;base64,{b64encode(data).decode()}"
    return f'<img src="{source}" alt="{html.escape(description)}" style="max-width: 100%">'


def picture_and_text(figure: Figure, text: str) -> str:
    """The picture above the text, as HTML."""
    return f"{image(png(figure), text.partition(chr(10))[0])}<pre>{html.escape(text)}</pre>"
