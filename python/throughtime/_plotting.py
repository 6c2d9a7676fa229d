"""The optional import of matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needing_matplotlib() -> Iterator[None]:
    """Import modules that draw inside: the error for a missing matplotlib says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f'a plot needs matplotlib ({error}): pip install matplotlib, or pip install "throughtime[cli]"'
        ) from error
