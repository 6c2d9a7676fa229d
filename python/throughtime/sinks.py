"""Sinks of `FlowMonitor`: they write its records to JSON lines, TensorBoard or Weights & Biases.

A sink is any callable that takes a `FlowRecord`, such as ``print``. If it has a method ``close``, the monitor's
``close`` calls it.
"""

from __future__ import annotations

import json
import os
from typing import Any, Self

from ._arguments import file_path, flag
from .monitor.flow_record import FlowRecord

__all__ = ["JsonLines", "TensorBoard", "WandB"]


class JsonLines:
    """Writes each record to a file as one line of JSON, and flushes it at once.

    ``"inf"``, ``"-inf"`` and ``"nan"`` are strings, because JSON has no such numbers. A context manager; the monitor's
    ``close`` closes the file too.

    Parameters
    ----------
    path : path
        The file to create.
    force : bool
        Replace the file if it exists.

    Raises
    ------
    FileExistsError
        If the file exists, unless `force`.

    Examples
    --------
    >>> import json, os, tempfile, numpy as np, throughtime as tt
    >>> path = os.path.join(tempfile.mkdtemp(), "flow.jsonl")
    >>> lstm = tt.LSTM(8, 16, seed=0)
    >>> with tt.FlowMonitor(lstm, every=1, sinks=[tt.sinks.JsonLines(path)]) as monitor:
    ...     tape = lstm.forward(np.ones((50, 4, 8), np.float32))
    ...     grads = tape.backward(np.ones_like(tape.output))
    >>> with open(path) as lines:
    ...     [json.loads(line)["lags"] for line in lines]
    [[0, 1, 2, 5, 10, 20, 49]]
    """

    def __init__(self, path: str | os.PathLike[str], force: bool = False) -> None:
        self.path: str = os.fsdecode(file_path("path", path))
        try:
            self._file = open(self.path, "w" if flag("force", force) else "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            raise FileExistsError(f"path is {self.path!r}, which exists; force=True replaces it") from None

    def __call__(self, record: FlowRecord) -> None:
        """Write a record."""
        if self._file.closed:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write(f"{json.dumps(record.as_dict(), allow_nan=False)}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file. A later record, such as that of a second training, is appended."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"JsonLines({self.path!r})"


class TensorBoard:
    """Writes the scalars of each record to TensorBoard, at the record's step.

    The names are those of :meth:`.FlowRecord.scalars`. The lag curve is a scalar for each lag. It is not a histogram:
    TensorBoard's are counts of values, which cannot be negative, and it would sort the lags into bins of its own.

    Parameters
    ----------
    writer : torch.utils.tensorboard.SummaryWriter
        Or another object with ``add_scalar(name, value, step)``, such as the writer of tensorboardX. It stays open;
        close it when the training is done.

    Raises
    ------
    TypeError
        If `writer` has no method ``add_scalar``.
    """

    def __init__(self, writer: Any) -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer must be a SummaryWriter, with add_scalar, got {type(writer).__name__}")
        self.writer = writer

    def __call__(self, record: FlowRecord) -> None:
        """Write the scalars of a record."""
        for name, value in record.scalars().items():
            self.writer.add_scalar(name, value, record.step)


class WandB:
    """Logs the scalars of each record to a run of Weights & Biases, online or offline.

    The names are those of :meth:`.FlowRecord.scalars`; the x-axis of their charts is ``flow_step``, the record's step.
    The scalars join the row that the training loop logs next, so the run's own step counts as it does without the
    sink. If the loop logs nothing from one record to the next, the records become rows of their own.

    Parameters
    ----------
    run : wandb.Run, optional
        The result of ``wandb.init``; ``wandb.run`` when None. It stays open.

    Raises
    ------
    ImportError
        If `run` is None and wandb is not installed.
    TypeError
        If `run` has no method ``log``.
    ValueError
        If `run` is None and there is no active run.

    Notes
    -----
    Weights & Biases drops a row whose explicit ``step=`` lies behind the run's step. Rows of the records' own move that
    step. If the loop passes ``step=`` and logs more rarely than the monitor measures, let it log its step as a metric
    instead, as ``flow_step`` is.
    """

    def __init__(self, run: Any = None) -> None:
        if run is None:
            run = _active_run()
        if not callable(getattr(run, "log", None)):
            raise TypeError(f"run must be what wandb.init returned, got {type(run).__name__}")
        self.run = run
        self._open: tuple[int, int] | None = None  # the row of the run that holds the latest record, and its step
        run.define_metric("flow_step", hidden=True)
        run.define_metric("flow_*", step_metric="flow_step")

    def __call__(self, record: FlowRecord) -> None:
        """Log the scalars of a record."""
        if self._open is not None and self._open[0] == self.run.step and self._open[1] != record.step:
            self.run.log({}, commit=True)  # the loop logged nothing since
        self.run.log({"flow_step": record.step, **record.scalars()}, commit=False)
        self._open = self.run.step, record.step


def _active_run() -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ImportError(f'WandB() needs wandb ({error}): pip install "throughtime[wandb]"') from error
    if wandb.run is None:
        raise ValueError("run is None and there is no active run; call wandb.init() first, or pass its run")
    return wandb.run
