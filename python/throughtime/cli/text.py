"""Texts as sequences: a file, or the text that Python brings; characters as integers; stretches of equal length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .output import fail

Array = NDArray[Any]


def text_name(file: Path | None) -> str:
    """What a text is called."""
    return "Python help() topics" if file is None else str(file)


def read_text(file: Path | None) -> str:
    """A UTF-8 file; the text of Python's help() where there is none."""
    if file is None:
        from pydoc_data.topics import topics

        return "\n".join(topics.values())
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except UnicodeDecodeError as error:
        fail(f"{file}: not UTF-8 (byte {error.start})")


def encode(text: str) -> tuple[str, Array]:
    """The distinct characters in order, and the text as indices into them."""
    codes, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4")), return_inverse=True)
    return "".join(map(chr, codes.tolist())), ids.reshape(-1)


def stretches(ids: Array, length: int, count: int) -> Array:
    """As many stretches (length, count) from all over the text; they overlap where it is short."""
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    return np.ascontiguousarray(ids[starts + np.arange(length)[:, None]])
