"""Failures of a command: one line on the standard error, with control characters escaped, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import typer

from throughtime._text import visible

FAILED, INTERRUPTED, BROKEN_PIPE = 1, 130, 141  # exit codes; the last two are a shell's for SIGINT and SIGPIPE
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one line on the standard error; code 2 is typer's own for invalid arguments."""
    _complain(message)
    raise typer.Exit(code)


class OneLineErrors:
    """Mixin for typer's commands and groups: every error becomes one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run with the arguments of typer's own `main`, and exit."""
        run = super().main  # type: ignore[misc]
        sys.exit(_exit_code(lambda: run(*args, **{**kwargs, "standalone_mode": False})))


def _exit_code(run: Callable[[], int | None]) -> int:
    output = sys.stdout
    if output is None:
        _complain("the standard output is closed")
        return FAILED
    try:
        code = run() or 0
        output.flush()
        return code
    except typer.Abort:
        return INTERRUPTED
    except OSError as error:
        return _end(error, output)
    except MemoryError as error:
        _complain(": ".join(filter(None, ("not enough memory", str(error)))))
        return FAILED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer and rich exit by themselves
            return _end(error.__context__, output)
        raise
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's errors about arguments have it
            raise
        _complain(" ".join(error.format_message().split()))
        return int(getattr(error, "exit_code", FAILED))


def _end(error: OSError, output: TextIO) -> int:
    what, reason = error.filename, error.strerror or str(error)
    if what is None and error.errno in _WRITING:  # errors of files name the file
        what = "the standard output"
        _silence(output)
    _complain(f"{os.fsdecode(what)}: {reason}" if isinstance(what, str | bytes) else reason)
    return BROKEN_PIPE if isinstance(error, BrokenPipeError) else FAILED


def _silence(output: TextIO) -> None:
    """Discard pending output: the interpreter would try to write it again on exit and report the failure."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.fileno())
        os.close(nowhere)


def _complain(message: str) -> None:
    with suppress(OSError):  # if the standard error cannot be written, there is nowhere to report it
        typer.echo(f"throughtime: error: {visible(message)}", err=True)
