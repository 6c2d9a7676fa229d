"""How a command ends that cannot go on: one line on the standard error, with nothing raw in it, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import typer

FAILED, INTERRUPTED, BROKEN_PIPE = 1, 130, 141  # exit codes; the last two are a shell's for SIGINT and SIGPIPE
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of controls, lone surrogates, separators of lines
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # they turn around what stands beside


def visible(text: str, keep: str = "") -> str:
    """`text` with Python's escapes in place of what a terminal obeys, but for the characters to keep."""
    return "".join(
        repr(character)[1:-1] if character not in keep and _acts(character) else character for character in text
    )


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or unicodedata.bidirectional(character) in _DIRECTIONS


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one line on the standard error; code 2 is typer's own for arguments that it refuses."""
    _complain(message)
    raise typer.Exit(code)


class OneLineErrors:
    """Of typer's commands and groups: whatever goes wrong is one line, and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run with the arguments of typer's own `main`, and leave."""
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
        if isinstance(error.__context__, BrokenPipeError):  # where typer and rich leave by themselves
            return _end(error.__context__, output)
        raise
    except Exception as error:
        if not hasattr(error, "format_message"):  # of arguments that typer refuses
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
    """What is still to be written goes nowhere: at its end the interpreter tries once more, and would complain."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.fileno())
        os.close(nowhere)


def _complain(message: str) -> None:
    with suppress(OSError):  # of a standard error that cannot be written nobody can be told
        typer.echo(f"throughtime: error: {visible(message)}", err=True)
