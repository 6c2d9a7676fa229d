"""Gradient flow of the recurrent layers of a Keras model while it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise ImportError('throughtime.callbacks.keras needs Keras: pip install "throughtime[keras]"') from None

from ..monitor.flow_monitor import BaseMonitor, Sink
from ..monitor.flow_record import record_of_forward
from .keras_layers import arguments, calls, check, converted, recurrent_layers

__all__ = ["FlowMonitorCallback"]


class FlowMonitorCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Measures how far back a loss on the last step would reach in each recurrent layer, every n batches.

    Keras's backward does not run in the kernels here, so this measures beside it. Before every `every`-th batch of the
    training, the model runs on `x` with ``training=False``. For each call of a ``SimpleRNN``, ``GRU`` or ``LSTM``,
    alone or in a ``Bidirectional``, the input that the layer gets goes through a layer with its weights here, and the
    gradient is that of ones on each direction's own last step, as :func:`throughtime.gradient_flow` has it: exact below
    and above the range of floats. So a record tells of the layer's Jacobians at its present weights and input, not of
    the gradient of the training loss, and its ``cancellation`` is empty. No bit of the training changes. A measurement
    costs a forward of the model, and a forward and a backward of each recurrent layer on the CPU.

    Parameters
    ----------
    x : array, or what the model takes
        A batch of inputs of the model, which stays the same, so that records are comparable.
    every : int
        Batches from one record of a layer to the next.
    sinks : sequence of callables
        As of :class:`throughtime.FlowMonitor`.

    Attributes
    ----------
    monitor : BaseMonitor
        ``history`` has the records; their ``step`` is the number of batches before, their ``layer`` the name of the
        Keras layer. ``losses`` has the loss that Keras reports after each batch: the mean over the epoch so far.

    Raises
    ------
    ImportError
        On import of this module, if Keras is not installed.
    ValueError
        At the start of the training, if the model has no such layer in ``layers`` or those of a model inside, or one
        has activations without a counterpart here, is stateful, or is called with a mask that is not padding at the
        end.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from throughtime.callbacks.keras import FlowMonitorCallback
    >>> model = keras.Sequential([keras.Input((20, 8)), keras.layers.LSTM(16), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.random.default_rng(0).standard_normal((32, 20, 8)), np.zeros((32, 1))
    >>> callback = FlowMonitorCallback(x[:8], every=2)
    >>> _ = model.fit(x, y, batch_size=8, callbacks=[callback], verbose=0)
    >>> [record.step for record in callback.monitor.history]
    [0, 2]
    """

    def __init__(self, x: Any, every: int = 50, sinks: Iterable[Sink] = ()) -> None:
        super().__init__()
        self.monitor = BaseMonitor((), every, sinks, "full")
        self._x, self._batches = x, 0
        self._layers: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that every layer can be measured."""
        self._layers = recurrent_layers(self.model)
        if not self._layers:
            raise ValueError(f"model {self.model.name!r} has no SimpleRNN, GRU or LSTM to measure")
        for layer in self._layers:
            check(layer)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Measure, at every `every`-th batch."""
        if self._batches % self.monitor.every == 0:
            if hasattr(self.model, "jax_state_sync"):  # while it trains with jax, the model has no weights
                self.model.jax_state_sync()
            for layer, call in calls(self.model, self._layers, self._x):
                here = converted(layer)
                tape = here.forward(**arguments(layer, call, here.dtype), training=False, output="last")
                self.monitor.add(record_of_forward(self._batches, layer.name, tape.record))
        self._batches += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Add the loss."""
        if logs and "loss" in logs:
            self.monitor.add_loss(logs["loss"])

    def on_train_end(self, logs: Any = None) -> None:
        """Close the sinks."""
        self.monitor.close()
