"""`ShownFigure`: the figures that the library returns, which a notebook shows as the result of a cell."""

from __future__ import annotations

from matplotlib.figure import Figure

from .notebook import png


class ShownFigure(Figure):
    """A figure that notebooks show even where pyplot, which registers the display of matplotlib's own, is not used."""

    def _repr_png_(self) -> bytes:
        return png(self)
