"""Files that are written completely or not at all."""

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
    """Write a new file in the directory of `path`; it replaces `path` once it is complete and on the disk.

    If that fails, the old file stays unchanged and the new one is removed. A symbolic link stays, and the file that it
    points to is replaced; mode and owner are kept. A device or a pipe is written to directly.

    Raises
    ------
    OSError
        Names `path`.
    """
    named = os.fsdecode(path)
    target = Path(os.path.realpath(named))
    try:
        if target.exists() and not target.is_file():
            whole = BytesIO()  # a zip file needs to seek, which a device cannot
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
        if error.errno is None:  # Python's io.UnsupportedOperation
            raise
        raise OSError(error.errno, error.strerror, named) from error  # with the subclass of the number
    _sync_directory(target.parent)


def check_writable(directory: Path) -> None:
    """Raise OSError unless a file can be created there; permissions alone do not show it."""
    fresh = _unused(directory)
    fresh.touch(exist_ok=False)
    fresh.unlink()


def sync(file: BinaryIO) -> None:
    """Return when the data is on the disk; a full disk raises an error here at the latest."""
    file.flush()
    os.fsync(file.fileno())


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Like ``figure.savefig``, in the format of the name's suffix, but complete or not at all."""
    name = os.fspath(path)
    form = os.path.splitext(name)[1][1:].lower()
    if not form:
        form = figure.canvas.get_default_filetype()
        name = f"{name.rstrip('.')}.{form}"
    with replacing(name) as file:
        figure.savefig(file, format=form, dpi=dpi)


def _unused(directory: Path) -> Path:
    """An unused name, which is short even if the name of the file to be written is long."""
    return directory / f".throughtime-{secrets.token_hex(8)}.tmp"


def _take_over(old: Path, fresh: Path) -> None:
    """Give `fresh` the owner and the mode of the file that it replaces, if there is one."""
    with suppress(FileNotFoundError):
        status = old.stat()
        with suppress(PermissionError):  # only root may change a file's owner
            os.chown(fresh, status.st_uid, status.st_gid)
        os.chmod(fresh, status.st_mode & 0o7777)


def _sync_directory(path: Path) -> None:
    """Write a directory's new entry to the disk; not every file system supports it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
