"""`load`: layers from files that ``layer.save`` wrote."""

from __future__ import annotations

import os
from typing import Any

from .._arguments import file_path
from .._saved import NewerFileError, SavedFile, room_for
from ..config import __version__
from .layer import Layer


def _rebuild(entry: dict[str, Any]) -> Any:
    return Layer._kinds[entry["layer"]]._rebuild(entry["config"]) if entry.keys() == {"layer", "config"} else entry


def load(path: str | os.PathLike[str]) -> Layer:
    """Read a layer that ``layer.save(path)`` wrote, in this version of throughtime or an earlier one.

    Untrusted files are safe to read: nothing in them is executed, and the name and shape of an array are checked
    against the configuration and the length of the file before its memory is allocated.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    layer
        Of the class that was saved: RNN, GRU, LSTM, Sequential or another layer.

    Raises
    ------
    TypeError
        If `path` is neither a str nor an os.PathLike.
    OSError
        If the file cannot be opened.
    ValueError
        If the file is not one that throughtime wrote, is damaged, or is in a newer format: the message names both
        versions.

    Examples
    --------
    >>> import os, tempfile, throughtime as tt
    >>> path = os.path.join(tempfile.mkdtemp(), "lstm.npz")
    >>> tt.LSTM(8, 16, seed=0).save(path)
    >>> tt.load(path)
    LSTM(8, 16)
    """
    name = file_path("path", path)
    with open(name, "rb") as stream:
        file = None
        try:
            file = SavedFile(stream)
            return _read(file)
        except MemoryError:
            raise
        except NewerFileError as error:
            raise ValueError(f"path {error}: {name!r}") from None
        except Exception as error:  # any error of zipfile, NumPy, JSON or a constructor about the file's contents
            what = str(error) or type(error).__name__
            if file is not None and file.version != __version__:
                what += f"; it was saved by throughtime {file.version}, and this is throughtime {__version__}"
            raise ValueError(f"path is not a layer saved by throughtime: {name!r} ({what})") from None


def _read(file: SavedFile) -> Layer:
    with room_for(file.entries.values()):
        layer = file.model(_rebuild)
    if not isinstance(layer, Layer):
        raise ValueError("its configuration is not that of a layer")
    arrays = {**layer.parameters, **layer.buffers}
    for name in arrays | file.entries:
        found = file.entries[name].shape if name in file.entries else None
        expected = arrays[name].shape if name in arrays else None
        if found != expected:
            raise ValueError(f"{name!r} has shape {found}, expected {expected} for {layer!r}")
    for name, entry in file.entries.items():
        if entry.dtype.newbyteorder("=") != arrays[name].dtype:
            raise ValueError(f"{name!r} has dtype {entry.dtype}, expected {arrays[name].dtype}")
        arrays[name][...] = file.read(entry)
    if file.rng_state is not None:
        layer.set_rng_state(file.read(file.rng_state))
    return layer
