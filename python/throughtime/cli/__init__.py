"""The command `throughtime`: `train`, `flow`, `bench`, `info`. Needs the extra: ``pip install "throughtime[cli]"``."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

__all__ = ["app"]


def _missing() -> list[str]:
    return [name for name in ("typer", "rich", "matplotlib") if importlib.util.find_spec(name) is None]


def _build() -> Any:
    import typer

    from . import flow, info, train
    from .bench.command import bench
    from .options import ListCommand

    app = typer.Typer(
        name="throughtime",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Recurrent networks with the gradient at every timestep.",
    )
    app.command("train")(train.train)
    app.command("flow")(flow.flow)
    app.command("bench", cls=ListCommand)(bench)
    app.command("info")(info.info)
    return app


def _explain() -> None:
    sys.exit(
        f"throughtime: error: the command line needs {', '.join(_missing())}, which is not installed: "
        'pip install "throughtime[cli]"'
    )


app = _explain if _missing() else _build()
