"""Texts as sequences: from a file or Python's help(); characters as integers; stretches of equal length."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import fail

Array = NDArray[Any]

_LARGEST = 1 << 30  # bytes of a text; endless input is refused too
_PIECE = 1 << 20  # bytes read, decoded or counted at a time
_CHARACTERS = 0x110000  # in Unicode


def text_name(file: Path | None) -> str:
    """The name of a text in messages."""
    return "Python help() topics" if file is None else str(file)


def read_ids(file: Path | None) -> tuple[str, Array]:
    """The sorted distinct characters of a UTF-8 file, and the text as indices into them, of the smallest type.

    Without a file, reads the text of Python's help(). Peak memory is the text's bytes plus the indices.
    """
    if file is None:
        from pydoc_data.topics import topics

        text = "\n".join(topics.values())
        return _encode(lambda: iter([text]))
    try:
        data = _read(file)
        return _encode(lambda: _decoded(data))
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except UnicodeDecodeError as error:
        fail(f"{file}: not UTF-8 (byte {error.start})")


def encode(text: str) -> tuple[str, Array]:
    """The sorted distinct characters, and the text as indices into them."""
    vocabulary, ids = _encode(lambda: iter([text]))
    return vocabulary, ids.astype(np.int64)


def counts(ids: Array) -> Array:
    """How often each index occurs."""
    found = np.zeros(1 + int(ids.max()), np.int64)
    for start in range(0, len(ids), _PIECE):
        found += np.bincount(ids[start : start + _PIECE], minlength=len(found))
    return found


def stretches(ids: Array, length: int, count: int) -> Array:
    """Stretches (length, count), evenly spread over the text; they overlap if it is short."""
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    return np.ascontiguousarray(ids[starts + np.arange(length)[:, None]], np.int64)


def _read(file: Path) -> bytearray:
    """All bytes of a file or a pipe; refuses devices and texts that are too large."""
    data = bytearray()
    with open(file, "rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            fail(f"{file}: is a device, expected a file")
        size = status.st_size  # 0 for a pipe
        while size <= _LARGEST and (piece := stream.read(_PIECE)):
            data += piece
            size = max(size, len(data))
    if size > _LARGEST:
        fail(f"{file}: more than {_LARGEST:,} bytes, the most that a text can have")
    return data


def _decoded(data: bytearray) -> Iterator[str]:
    """A text piece by piece, without its byte order mark, and with "\\n" as line end."""
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    while start < len(data):
        end = _end_of_piece(data, start + _PIECE)
        try:
            text = data[start:end].decode()
        except UnicodeDecodeError as error:
            raise UnicodeDecodeError("utf-8", b"", start + error.start, start + error.end, error.reason) from None
        yield text.replace("\r\n", "\n")
        start = end


def _end_of_piece(data: bytearray, end: int) -> int:
    """`end`, or a little less so as to split neither a character nor a line end."""
    if end >= len(data):
        return len(data)
    for _ in range(3):  # the most bytes that a character has after its first
        end -= data[end] & 0xC0 == 0x80
    return end - (data[end - 1 : end + 1] == b"\r\n")


def _encode(pieces: Callable[[], Iterator[str]]) -> tuple[str, Array]:
    """One pass over the text to find its characters, a second one to number them."""
    occurs, length = np.zeros(_CHARACTERS, bool), 0
    for piece in pieces():
        for codes in _codes(piece):
            occurs[codes] = True
            length += len(codes)
    found = np.flatnonzero(occurs)
    number = np.zeros(_CHARACTERS, np.min_scalar_type(len(found)))
    number[found] = np.arange(len(found))
    ids, start = np.empty(length, number.dtype), 0
    for piece in pieces():
        for codes in _codes(piece):
            ids[start : start + len(codes)] = number[codes]
            start += len(codes)
    return "".join(map(chr, found.tolist())), ids


def _codes(text: str) -> Iterator[Array]:
    """Code points of a text, in pieces."""
    for start in range(0, len(text), _PIECE):
        yield np.frombuffer(text[start : start + _PIECE].encode("utf-32-le"), np.dtype("<u4"))
