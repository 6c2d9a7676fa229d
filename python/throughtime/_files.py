"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def replacing(path: str | bytes | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a new file beside `path`, which takes its place when it is whole and on the disk.

    Where that fails, what was there before is still there, and nothing else. A symbolic link stays, and the file that
    it names is replaced; mode and owner stay. A device or a pipe is written to as it is.

    Raises
    ------
    OSError
        Names `path`.
    """
    named = os.fsdecode(path)
    target = Path(os.path.realpath(named))
    try:
        if target.exists() and not target.is_file():
            whole = BytesIO()  # for a zip file seeks, which a device does not
            yield whole
            with open(target, "wb") as file:
                file.write(whole.getbuffer())
            return
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        fresh = _unused(target.parent)
        with open(fresh, "xb") as file:
            try:
                yield file
                sync(file)
                _take_over(target, fresh)
                os.replace(fresh, target)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno is not None:  # which an unsupported operation of Python's own has not
            error.filename, error.filename2 = named, None
        raise
    _sync_directory(target.parent)


def check_writable(directory: Path) -> None:
    """Raise OSError unless a file can be made there: permissions alone do not tell."""
    fresh = _unused(directory)
    fresh.touch(exist_ok=False)
    fresh.unlink()


def sync(file: BinaryIO) -> None:
    """Return when what was written is on the disk; a full one is found here at the latest."""
    file.flush()
    os.fsync(file.fileno())


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """As ``figure.savefig``, in the format of the name's ending, but whole or not at all."""
    name = os.fspath(path)
    form = os.path.splitext(name)[1][1:].lower()
    if not form:
        form = figure.canvas.get_default_filetype()
        name = f"{name.rstrip('.')}.{form}"
    with replacing(name) as file:
        figure.savefig(file, format=form, dpi=dpi)


def _unused(directory: Path) -> Path:
    """A name that no file has; it is short, however long that of the file to be written is."""
    return directory / f".throughtime-{secrets.token_hex(8)}.tmp"


def _take_over(old: Path, fresh: Path) -> None:
    """Give `fresh` the owner and the mode of the file that it replaces, if there is one."""
    with suppress(FileNotFoundError):
        status = old.stat()
        with suppress(PermissionError):  # only root gives files away
            os.chown(fresh, status.st_uid, status.st_gid)
        os.chmod(fresh, status.st_mode & 0o7777)


def _sync_directory(path: Path) -> None:
    """Make a new name last; not every file system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
