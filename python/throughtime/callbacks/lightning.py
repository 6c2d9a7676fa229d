"""`FlowMonitor` as a callback of Lightning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..monitor.flow_monitor import Sink
from ..torch import FlowMonitor
from .collecting import Collector

__all__ = ["FlowMonitorCallback"]


def _callback() -> Any:
    """The base class, of the package that the program has imported; the two packages have the same code."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise ImportError('throughtime.callbacks.lightning needs Lightning: pip install "throughtime[lightning]"')


class FlowMonitorCallback(_callback()):  # type: ignore[misc]
    """Runs a :class:`throughtime.torch.FlowMonitor` while a Lightning ``Trainer`` trains.

    It watches the LightningModule from the first batch to the end of the training, and adds the loss of every batch.
    After a batch with records, it logs their scalars with the trainer's loggers, at the number of optimiser steps
    before that batch. No bit of the training changes.

    Parameters
    ----------
    every, sinks, range
        As of :class:`throughtime.torch.FlowMonitor`. With several processes, the first one measures its share of the
        batch; the others measure nothing.

    Attributes
    ----------
    monitor : throughtime.torch.FlowMonitor or None
        The monitor of the latest ``fit``, with its ``history`` and ``losses``; None before, and in other processes.

    Raises
    ------
    ImportError
        On import of this module, if neither ``lightning`` nor ``pytorch_lightning`` is installed.
    ValueError
        At the start of the training, if the module has no ``throughtime.torch`` RNN, GRU or LSTM.

    Examples
    --------
    >>> from throughtime.callbacks.lightning import FlowMonitorCallback
    >>> callback = FlowMonitorCallback(every=50, sinks=[print])
    >>> # lightning.Trainer(callbacks=[callback]).fit(model, batches)
    """

    def __init__(self, every: int = 50, sinks: Iterable[Sink] = (), range: str = "float") -> None:
        super().__init__()
        self._scalars, self._step = Collector(), 0
        self._options: dict[str, Any] = {"every": every, "sinks": [*sinks, self._scalars], "range": range}
        self.monitor: FlowMonitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Create the monitor; the module is on its device by now."""
        if trainer.is_global_zero:
            self.monitor = FlowMonitor(pl_module, **self._options)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the step at which Lightning will log this batch."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the loss and log the batch's records."""
        if self.monitor is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:  # Lightning has divided it by the number of batches that it accumulates
            self.monitor.add_loss(loss * trainer.accumulate_grad_batches)
        if scalars := self._scalars.take():
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=self._step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the monitor."""
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the monitor."""
        self.on_train_end(trainer, pl_module)
