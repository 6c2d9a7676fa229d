"""`FlowMonitor` of torch modules."""

from __future__ import annotations

from collections.abc import Iterable

from torch.nn import Module
from torch.nn.modules.rnn import RNNBase

from ..monitor.flow_monitor import BaseMonitor, Sink
from .modules import Recurrent
from .recorder import key_of, stored_weight

__all__ = ["FlowMonitor"]


class FlowMonitor(BaseMonitor):
    """Watches the gradient through time of the recurrent modules of a model while it is trained.

    Parameters
    ----------
    model : torch.nn.Module
        Its ``throughtime.torch`` RNN, GRU and LSTM modules are watched, compiled ones included, also after ``to`` or
        ``load_state_dict(assign=True)``. Calls with other weights than the module's own are not: those of
        ``torch.func.functional_call``, and of the replicas of ``torch.nn.DataParallel``.
    every, sinks, range
        As of :class:`throughtime.FlowMonitor`.

    Attributes
    ----------
    history, losses
        As of :class:`throughtime.FlowMonitor`.

    Raises
    ------
    TypeError
        If `model` is not a module, or a sink is not callable.
    ValueError
        If the model has no module to watch, the first weight of one is parametrized or also that of another module, or
        an option does not exist.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> model = throughtime.torch.GRU(8, 16)
    >>> with throughtime.torch.FlowMonitor(model, every=1) as monitor:
    ...     output, _ = model(torch.randn(50, 4, 8))
    ...     output[-1].sum().backward()
    >>> monitor.history[0].log10_norm.shape
    (1, 7)
    """

    def __init__(self, model: Module, every: int = 50, sinks: Iterable[Sink] = (), range: str = "float") -> None:
        if not isinstance(model, Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        found = {name: part for name, part in model.named_modules() if isinstance(part, Recurrent)}
        if not found:
            torchs = [name or type(part).__name__ for name, part in model.named_modules() if isinstance(part, RNNBase)]
            hint = f"; throughtime.torch.replace converts {', '.join(torchs)}" if torchs else ""
            raise ValueError(f"model has no throughtime.torch RNN, GRU or LSTM to watch{hint}")
        _check_weights(found, range)
        watched = [(name or type(part).__name__, key_of(part, part._names[0])) for name, part in found.items()]
        super().__init__(watched, every, sinks, range)


def _check_weights(found: dict[str, Recurrent], range: str) -> None:
    """Raise unless the first weight of each module, by which its backward passes are known, is its own."""
    owners: dict[int, str] = {}
    for name, part in found.items():
        place, first = name or type(part).__name__, part._names[0]
        weight = stored_weight(part, first)
        if weight is None:
            raise ValueError(f"{place} cannot be watched: its {first} is parametrized, so each forward has another one")
        if id(weight) in owners:
            raise ValueError(f"{owners[id(weight)]} and {place} share {first}, so their backward passes look alike")
        owners[id(weight)] = place
        if range == "full" and weight.device.type != "cpu":
            raise ValueError(f'range="full" runs on the CPU only, but {place} is on {weight.device}')
