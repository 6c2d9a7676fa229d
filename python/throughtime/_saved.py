"""Read the files that ``layer.save`` writes, without trusting them: the header of an entry is checked before its data.

A file is NumPy's ``.npz``: a zip archive whose entries are ``.npy`` files. One of them is the configuration, as JSON:
the number of the format, the version of the library that wrote the file, and the model. docs/saving.md describes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from ._arguments import Array
from .config import __version__

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

CONFIGURATION = "__throughtime__"
RNG_STATE = "__rng_state__"
FORMAT = 1  # one more if files change so that an earlier version would misread them; files before 0.1.0 have none
_LONGEST_CONFIGURATION = 1 << 26  # bytes: some 100,000 layers
_BEST_RATIO = 1032  # highest compression ratio of deflate
_LONGEST_VERSION = 60  # characters shown
_KINDS = {CONFIGURATION: "U", RNG_STATE: "u"}  # of dtypes; those of other entries are "fi"
_SLACK = 1 << 16  # numbers allowed in excess, so that later errors can name the missing or too small parameter

_room: ContextVar[list[int] | None] = ContextVar("_room", default=None)


class Entry(NamedTuple):
    """An array in the file that has not been read yet."""

    info: ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class NewerFileError(ValueError):
    """The file's format is newer than this version of the library."""


def configuration_of(model: Any, **how: Any) -> str:
    """The configuration that a file has for a model, with the arguments of ``json.dumps``."""
    return json.dumps({"format": FORMAT, "version": __version__, "model": model}, **how)


class SavedFile:
    """The entries of a file. Raises ValueError, or any error of a parser on damaged bytes.

    Attributes
    ----------
    entries : dict of str to Entry
        The arrays of the layer.
    rng_state : Entry or None
        The state of its random masks; files before 0.1.0 have none.
    version : str
        That of the library that wrote the file.
    """

    version = "before 0.1.0"

    def __init__(self, stream: BinaryIO) -> None:
        from zipfile import ZipFile  # here, because it would take half of the package's import time

        length = stream.seek(0, 2)
        self._zip: ZipFile = ZipFile(stream)
        if sum(info.compress_size for info in self._zip.infolist()) > length:
            raise ValueError("its entries are longer than the file")
        self.entries: dict[str, Entry] = {}
        for info in self._zip.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self.entries:
                raise ValueError(f"two entries are named {name!r}")
            self.entries[name] = self._look_at(name, info)
        self.rng_state = self.entries.pop(RNG_STATE, None)
        self._text = self._configuration(self.entries.pop(CONFIGURATION, None))
        self._check_format()

    def model(self, object_hook: Callable[[dict[str, Any]], Any]) -> Any:
        """The model in the configuration, parsed with this hook."""
        configuration = json.loads(self._text, object_hook=object_hook)
        return configuration.get("model") if isinstance(configuration, dict) else configuration

    def _check_format(self) -> None:
        """Read the version, and raise NewerFileError before a newer file is taken for a damaged one."""
        configuration = json.loads(self._text)
        if not isinstance(configuration, dict) or "format" not in configuration:
            return
        found = configuration["format"]
        self.version = str(configuration.get("version", "unknown"))[:_LONGEST_VERSION]
        if type(found) is not int or found < 1:
            raise ValueError(f"its format is {str(found)[:_LONGEST_VERSION]!r}, expected an int of at least 1")
        if found > FORMAT:
            raise NewerFileError(
                f"was saved by throughtime {self.version} in format {str(found)[:_LONGEST_VERSION]}, but this is "
                f"throughtime {__version__}, which reads formats up to {FORMAT}; a newer version is needed"
            )

    def read(self, entry: Entry) -> Array:
        """Read an array; a wrong checksum raises an error."""
        with self._zip.open(entry.info) as stream:
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):
                raise ValueError(f"{entry.info.filename!r} is longer than its array")
        return array

    def _look_at(self, name: str, info: ZipInfo) -> Entry:
        from zipfile import ZIP_DEFLATED, ZIP_STORED

        if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise ValueError(f"{name!r} is compressed by method {info.compress_type}")
        if info.file_size > info.compress_size * (1 if info.compress_type == ZIP_STORED else _BEST_RATIO):
            raise ValueError(f"{name!r} cannot have {info.file_size} bytes, of {info.compress_size}")
        with self._zip.open(info) as stream:
            shape, dtype = _header(stream)
            expected = stream.tell() + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or info.file_size != expected:
            raise ValueError(f"{name!r} has {info.file_size} bytes, expected {expected} for shape {shape}")
        if dtype.kind not in _KINDS.get(name, "fi"):
            raise ValueError(f"{name!r} has dtype {dtype}")
        return Entry(info, shape, dtype)

    def _configuration(self, entry: Entry | None) -> str:
        if entry is None:
            raise ValueError("it has no configuration")
        if entry.shape or entry.dtype.itemsize > _LONGEST_CONFIGURATION:
            raise ValueError(f"its configuration has shape {entry.shape} and {entry.dtype.itemsize} bytes")
        return str(self.read(entry))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"an entry is in version {version} of NumPy's format")
    return shape, dtype


@contextmanager
def room_for(entries: Iterable[Entry]) -> Iterator[None]:
    """In this context, limit new layers to about as many parameter values in total as these entries have."""
    token = _room.set([sum(math.prod(entry.shape) for entry in entries) + _SLACK])
    try:
        yield
    finally:
        _room.reset(token)


def claim(shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise if a layer made from a file needs more numbers than the file has."""
    left = _room.get()
    if left is None:
        return
    left[0] -= sum(map(math.prod, shapes))
    if left[0] < 0:
        raise ValueError("its configuration asks for more parameters than it holds")
