"""`FlowMonitor` as a callback of the Trainer of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError(
        'throughtime.callbacks.transformers needs transformers: pip install "throughtime[transformers]"'
    ) from None

from ..monitor.flow_monitor import Sink
from ..torch import FlowMonitor
from .collecting import Collector

__all__ = ["FlowMonitorCallback"]


class FlowMonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Runs a :class:`throughtime.torch.FlowMonitor` while a ``transformers.Trainer`` trains.

    It watches the trainer's model from the first batch to the end of the training. No bit of the training changes.

    Parameters
    ----------
    every, sinks, range
        As of :class:`throughtime.torch.FlowMonitor`; `every` counts the batches that are accumulated, too. With several
        processes, the first one measures its share of the batch; the others measure nothing.
    trainer : transformers.Trainer, optional
        If given, the records' scalars go through ``trainer.log`` after their step, and so to ``state.log_history`` and
        to the integrations in `report_to`. A trainer does not pass itself to its callbacks; use
        ``trainer.add_callback(FlowMonitorCallback(trainer=trainer))``.

    Attributes
    ----------
    monitor : throughtime.torch.FlowMonitor or None
        The monitor of the latest ``train``, with its ``history``; None before, and in other processes. Its ``losses``
        are those that the trainer logs: means over ``logging_steps`` steps, and so every step's with
        ``logging_steps=1``. Callbacks get no other losses.

    Raises
    ------
    ImportError
        On import of this module, if transformers is not installed.
    ValueError
        At the start of the training, if the model has no ``throughtime.torch`` RNN, GRU or LSTM.

    Examples
    --------
    >>> from throughtime.callbacks.transformers import FlowMonitorCallback
    >>> callback = FlowMonitorCallback(every=50, sinks=[print])
    >>> # transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    """

    def __init__(
        self, every: int = 50, sinks: Iterable[Sink] = (), range: str = "float", *, trainer: Any = None
    ) -> None:
        if trainer is not None and not callable(getattr(trainer, "log", None)):
            raise TypeError(f"trainer must be a transformers.Trainer, got {type(trainer).__name__}")
        self._scalars, self._trainer = Collector(), trainer
        self._options: dict[str, Any] = {"every": every, "sinks": [*sinks, self._scalars], "range": range}
        self.monitor: FlowMonitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Create the monitor; the model is on its device by now."""
        self._close()  # that of a training that an exception ended
        if state.is_world_process_zero:
            self.monitor = FlowMonitor(model, **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the step's records."""
        scalars = self._scalars.take()
        if scalars and self._trainer is not None:
            should_log = control.should_log
            self._trainer.log(scalars)
            control.should_log = should_log  # `log` clears it, and the trainer would not log the loss of this step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add the loss that the trainer logs."""
        if self.monitor is not None and logs and "loss" in logs:
            self.monitor.add_loss(logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the monitor."""
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
