"""`FlowMonitor`, for layers of this package; `BaseMonitor` is what it shares with the one for torch modules."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn, Self

from .._arguments import choice, file_path, flag, size
from .._files import replacing
from ..analysis.notebook import in_notebook, picture_and_text, png
from ..backend.choose import require_host
from ..layers.layer import Composite, Layer
from ..recurrent import Recurrent
from ..recurrent.backward import Gradients, Loss
from ..recurrent.observers import Key, observe
from ..recurrent.record import Record
from .flow_record import FlowRecord, make_record
from .html import figures, page
from .series import series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FlowMonitor"]

Sink = Callable[[FlowRecord], object]


class BaseMonitor:
    """Observes recurrent layers by their keys; hands each record to `history` and to the sinks."""

    def __init__(self, watched: Iterable[tuple[str, Key]], every: int, sinks: Iterable[Sink], range: str) -> None:
        self.every: int = size("every", every)
        self.range: str = choice("range", range, ("float", "full"))
        if not isinstance(sinks, Iterable):
            raise TypeError(f"sinks must be a sequence of functions, got {type(sinks).__name__}")
        self.sinks: list[Sink] = list(sinks)
        for i, sink in enumerate(self.sinks):
            if not callable(sink):
                raise TypeError(f"sinks[{i}] must be callable with a record, got {type(sink).__name__}")
        self.history: list[FlowRecord] = []
        self.losses: list[float] = []
        self._stops = [observe(key, _Watch(self, name)) for name, key in watched]
        self._closed = False

    def add_loss(self, loss: Any) -> None:
        """Add the loss of a training step, which plots show beside the gradient.

        Parameters
        ----------
        loss : float
            A number, or a tensor with one element.
        """
        try:
            self.losses.append(float(loss.detach() if hasattr(loss, "detach") else loss))
        except (TypeError, ValueError) as error:
            raise TypeError(f"loss must be a number, got {type(loss).__name__}") from error

    def plot(self, path_or_axes: str | os.PathLike[str] | Axes | None = None, layer: str | None = None) -> Figure:
        """Draw the gradient's norm by step and lag, gamma and horizon over training, and the loss; needs matplotlib.

        Parameters
        ----------
        path_or_axes : path or matplotlib Axes, optional
            File to save the figure to, in the format of its suffix; or axes to draw one heat map into.
        layer : str, optional
            The name of one layer, or ``"layer/row"`` for one direction of it, as in :meth:`.FlowRecord.place`. Without
            it, all layers and directions; a figure shows at most six.

        Returns
        -------
        matplotlib.figure.Figure
            A new figure, or that of the axes.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If `path_or_axes` has another type.
        ValueError
            If there is no record, or none of `layer`, or axes are given for more than one layer and direction.
        """
        figure: Figure = figures().plot(self, path_or_axes, layer)
        return figure

    def save_html(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Save figures and a table of the last records as one HTML file without links to others; needs matplotlib.

        Parameters
        ----------
        path : path
            Name of the file.
        force : bool
            Replace an existing file.

        Raises
        ------
        FileExistsError
            If the file exists and `force` is false.
        ImportError
            If matplotlib is not installed.
        TypeError
            If `path` is not a path, or `force` not a bool.
        ValueError
            If there is no record.
        """
        file_path("path", path)
        if not flag("force", force) and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "path exists already, and force is False", os.fspath(path))
        content = page(self).encode("utf-8")
        with replacing(path) as file:
            file.write(content)

    def close(self) -> None:
        """Stop observing and close every sink, even if one raises. The history stays. Closing twice is allowed."""
        self._closed = True
        for stop in self._stops:
            stop()
        with ExitStack() as stack:
            for sink in reversed(self.sinks):
                if hasattr(sink, "close"):
                    stack.callback(sink.close)

    def __enter__(self) -> Self:
        if self._closed:
            raise ValueError("the monitor is closed; a new one is needed to observe again")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled; its history and losses can")

    def __repr__(self) -> str:
        layers = dict.fromkeys(record.layer for record in self.history)
        return f"{type(self).__name__}({len(self.history)} records of {', '.join(layers) or 'no layer yet'})"

    def _repr_png_(self) -> bytes | None:
        return in_notebook(lambda: png(self.plot())) if self.history else None

    def _repr_html_(self) -> str | None:
        if not self.history:
            return None
        last = [str(series.records[-1]) for series in series_of(self.history) if series.row == 0]
        text = "\n".join([repr(self), *last])
        return in_notebook(lambda: picture_and_text(self.plot(), text))

    def add(self, record: FlowRecord) -> None:
        """Append a record to the history, and hand it to the sinks."""
        self.history.append(record)
        for sink in self.sinks:
            sink(record)


class FlowMonitor(BaseMonitor):
    """Watches the gradient through time of recurrent layers while they are trained.

    At every `every`-th backward pass of each recurrent layer, starting with the first, the monitor measures how large
    the gradient is at each lag from the end of the sequence, and hands a :class:`.FlowRecord` to `history` and to the
    sinks. The training loop stays as it is, and so does every bit of its results. It watches until it is closed or the
    layer is gone: the layer does not live longer for being watched.

    Parameters
    ----------
    layer : RNN, GRU, LSTM, Sequential or another layer
        Every recurrent layer inside is watched.
    every : int
        Backward passes of a layer from one record to the next.
    sinks : sequence of callables
        Each is called with every record, such as ``print``. If a sink has a method ``close``, the monitor's ``close``
        calls it. An exception in a sink reaches the caller of the backward.
    range : {"float", "full"}
        ``"float"`` measures the gradient of the training loss, from the backward pass itself. If there is a loss at
        every timestep, it shows where in the sequence the gradient lives. ``"full"`` asks how far back a loss on the
        last step would reach: it runs :func:`gradient_flow`'s backward on the same forward, with a gradient of ones on
        each direction's own last step, and is exact far below and above the range of floats. Not for layers on a
        device.

    Attributes
    ----------
    history : list of FlowRecord
    losses : list of float
        As given to `add_loss`.

    Raises
    ------
    TypeError
        If `layer` is not a layer, or a sink is not callable.
    ValueError
        If the layer contains no recurrent layer, or an option does not exist.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((500, 4, 8), dtype=np.float32)
    >>> model, optimiser = tt.LSTM(8, 16, seed=0), tt.optim.Adam()
    >>> with tt.FlowMonitor(model, every=10, range="full") as monitor:
    ...     for step in range(20):
    ...         tape = model.forward(x)
    ...         loss, d_output = tt.mse(tape.output, np.zeros_like(tape.output))
    ...         optimiser.step(model.parameters, tape.backward(d_output).parameters)
    ...         monitor.add_loss(loss)
    >>> [record.step for record in monitor.history]
    [0, 10]
    >>> monitor.history[0].lags
    array([  0,   1,   2,   5,  10,  20,  50, 100, 200, 499])
    """

    def __init__(self, layer: Layer, every: int = 50, sinks: Iterable[Sink] = (), range: str = "float") -> None:
        if not isinstance(layer, Layer):
            hint = "; for torch modules there is throughtime.torch.FlowMonitor" if hasattr(layer, "state_dict") else ""
            raise TypeError(f"layer must be a throughtime layer, got {type(layer).__name__}{hint}")
        found = dict(_recurrent_layers(layer, ""))
        if not found:
            raise ValueError(f"layer has no recurrent layer to watch: {layer!r}")
        if range == "full":
            for inner in found.values():
                require_host('FlowMonitor(range="full")', inner.device)
        super().__init__([(name, _key_of(inner)) for name, inner in found.items()], every, sinks, range)


def _recurrent_layers(layer: Layer, name: str) -> Iterator[tuple[str, Recurrent]]:
    if isinstance(layer, Composite):
        for part, inner in layer._inner.items():
            yield from _recurrent_layers(inner, f"{name}.{part}" if name else part)
    elif isinstance(layer, Recurrent):
        yield name or type(layer).__name__, layer


def _key_of(layer: Recurrent) -> Key:
    """The layer's id. It does not keep the layer alive."""
    reference, key = weakref.ref(layer), id(layer)
    return lambda: None if reference() is None else key


class _Watch:
    """The observer of one layer."""

    def __init__(self, monitor: BaseMonitor, layer: str) -> None:
        self._monitor, self._layer = monitor, layer
        self._count, self._lock = 0, threading.Lock()
        self._measured = threading.local()  # its step: the number of the backward that this thread runs

    def wanted(self) -> frozenset[str] | None:
        """See `Observer`."""
        with self._lock:
            step, self._count = self._count, self._count + 1
        if step % self._monitor.every:
            return None
        self._measured.step = step
        return _FULL if self._monitor.range == "full" else _FLOAT

    def take(self, record: Record, loss: Loss, grads: Gradients) -> None:
        """See `Observer`."""
        step, full = self._measured.step, self._monitor.range == "full"
        self._monitor.add(make_record(step, self._layer, record, grads, full=full))


_FLOAT, _FULL = frozenset({"hidden", "parameter_norms"}), frozenset({"parameter_norms"})
