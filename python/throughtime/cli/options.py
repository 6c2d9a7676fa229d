"""Options that take several values: ``--cells LSTM GRU`` means what ``--cells LSTM --cells GRU`` does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from typer.core import TyperCommand

from .output import fail


class ListCommand(TyperCommand):
    """A command without positional arguments, so that a bare word belongs to the list before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name of a list option before each of its values."""
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, repeat_names(args, lists))


def repeat_names(arguments: Sequence[str], lists: Collection[str]) -> list[str]:
    """`arguments` with the name of an option among `lists` before each of its values."""
    repeated: list[str] = []
    current, waits = "", False  # the list option that was named last; whether its first value is still to come
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, _ = argument.partition("=")
            current, waits = (name, not equals) if name in lists else ("", False)
        elif current and not waits:
            repeated.append(current)
        else:
            waits = False
        repeated.append(argument)
    return repeated


def pick(option: str, given: Sequence[str] | None, valid: tuple[str, ...], default: tuple[str, ...]) -> list[str]:
    """The values of a list option: what was given, in the spelling of `valid` and once each, or the default."""
    spelling = {name.lower(): name for name in valid}
    for name in given or ():
        if name.lower() not in spelling:
            fail(f"{option} {name}: expected some of {', '.join(valid)}")
    return list(dict.fromkeys(spelling[name.lower()] for name in given)) if given else list(default)
