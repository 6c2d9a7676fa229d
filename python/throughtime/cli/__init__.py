"""The command `throughtime`. Install its dependencies with ``pip install "throughtime[cli]"``."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

__all__ = ["app"]


def _missing() -> list[str]:
    return [name for name in ("typer", "rich", "matplotlib") if importlib.util.find_spec(name) is None]


def _build() -> Any:
    import typer

    from . import flow, info, sample, train
    from .accuracy.command import accuracy
    from .bench.command import bench
    from .options import Command, Commands, about

    app = typer.Typer(
        name="throughtime",
        cls=Commands,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        callback=about,
    )
    for command in (train.train, sample.sample, flow.flow, bench, accuracy, info.info):
        app.command(command.__name__, cls=Command)(command)
    return app


def _explain() -> None:
    sys.exit(
        f"throughtime: error: the command line needs {', '.join(_missing())}, which is not installed: "
        'pip install "throughtime[cli]"'
    )


app = _explain if _missing() else _build()
