"""`record`: the gradients at every timestep, for backward passes inside a with statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Module
from torch.nn.modules.rnn import RNNBase

from .._arguments import check_timesteps
from .base import kind_of
from .modules import Recurrent
from .recorder import RECORDED, Timesteps, key_of, recording


@contextmanager
def record(module: Module, timesteps: Iterable[str] = RECORDED) -> Iterator[Timesteps]:
    """Record the gradients at every timestep in each backward pass of a module that runs inside the with statement.

    Parameters
    ----------
    module : RNN, LSTM or GRU
        A module of this package, alone or as a part of a model.
    timesteps : iterable of str
        What to record: attributes of `BackwardTimesteps`. ``"cell"`` is ignored by cells without c.

    Yields
    ------
    Timesteps
        Its attributes are those of the last backward pass; ``backwards`` lists all passes.

    Raises
    ------
    TypeError
        If `module` has another type.
    ValueError
        If `timesteps` has an unknown name, or the module is being recorded already.
    RuntimeError
        At the end, if no backward pass of the module ran inside.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> gru = throughtime.torch.GRU(8, 16)
    >>> output, _ = gru(torch.randn(50, 4, 8))
    >>> with throughtime.torch.record(gru) as timesteps:
    ...     output[-1].sum().backward()
    >>> timesteps.hidden.shape, timesteps.parameter_norms["weight_hh_l0"].shape
    (torch.Size([1, 50, 4, 16]), torch.Size([50]))
    """
    if not isinstance(module, Recurrent):
        raise TypeError(f"module must be a throughtime.torch.RNN, LSTM or GRU, got {kind_of(module)}{_hint(module)}")
    recorder = Timesteps(check_timesteps(timesteps, RECORDED))
    with recording(key_of(module, module._names[0]), recorder):
        yield recorder
    if not recorder.backwards:
        raise RuntimeError(
            "no backward pass of this module ran inside record(...): the backward must run inside, the forward may run "
            "before it; a module whose weight_ih_l0 is recomputed at each call cannot be recognised, nor can a "
            "compiled one whose saved tensors were copied by hooks"
        )


def _hint(module: Any) -> str:
    """A hint for the error: where a model has a module to record, or how to make one from torch's."""
    if isinstance(module, RNNBase):
        return "; throughtime.torch.replace converts torch's own modules"
    if not isinstance(module, Module):
        return ""
    inner = [name for name, part in module.named_modules() if isinstance(part, Recurrent)]
    return f", which has one at {', '.join(map(repr, inner))}" if inner else ""
