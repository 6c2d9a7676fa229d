"""Typer's commands, with four differences.

Options take several values: ``--cells LSTM GRU`` means ``--cells LSTM --cells GRU``. Options may be the fields of a
dataclass. Errors are one line. Environment variables for threads and kernels are checked before the work starts.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from throughtime import __version__, _core

from .errors import OneLineErrors, fail


class Commands(OneLineErrors, TyperGroup):
    """The group of all commands."""


class Command(OneLineErrors, TyperCommand):
    """One command. With list options, it has no positional arguments: a bare word belongs to the list before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name of a list option before each of its values."""
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, repeat_names(args, lists))

    def invoke(self, ctx: Any) -> Any:
        """Run it, if the requested kernels and threads exist on this machine."""
        try:
            _core.level()
            _core.get_num_threads()
        except RuntimeError as error:
            fail(str(error))
        return super().invoke(ctx)


def about(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Recurrent networks with the gradient at every timestep."""
    if version:
        typer.echo(f"throughtime {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer: the dataclass that `function` takes last becomes one parameter per field."""
    hints = get_type_hints(function, include_extras=True)
    *others, name = inspect.signature(function).parameters
    kind = hints[name]

    def command(**values: Any) -> None:
        passed = [values.pop(other) for other in others]
        function(*passed, kind(**values))

    def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    fields = get_type_hints(kind, include_extras=True)
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(parameter(other, hints[other]) for other in others),
            *(parameter(field.name, fields[field.name], field.default) for field in dataclasses.fields(kind)),
        ]
    )
    command.__name__, command.__doc__, command.__annotations__ = function.__name__, function.__doc__, {}
    return command


def given(context: typer.Context, option: str) -> bool:
    """Whether the user gave the option."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def check_finite(options: Mapping[str, float]) -> None:
    """Fail unless all options are finite numbers."""
    for option, value in options.items():
        if not math.isfinite(value):
            fail(f"{option} must be a finite number, got {value}")


def repeat_names(arguments: Sequence[str], lists: Collection[str]) -> list[str]:
    """`arguments` with the name of an option among `lists` before each of its values."""
    repeated: list[str] = []
    current, waits = "", False  # the last list option; whether its first value is still missing
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
    """The values of a list option, in the spelling of `valid` and without duplicates, or the default."""
    spelling = {name.lower(): name for name in valid}
    for name in given or ():
        if name.lower() not in spelling:
            fail(f"{option} {name}: expected some of {', '.join(valid)}")
    return list(dict.fromkeys(spelling[name.lower()] for name in given)) if given else list(default)
