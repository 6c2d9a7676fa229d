"""`replace`: torch's recurrent modules inside a model become these, with the same parameters."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.nn import Module
from torch.nn.modules.rnn import RNNBase

from .modules import GRU, LSTM, RNN, Recurrent

_OURS: dict[type[Module], type[Recurrent]] = {torch.nn.RNN: RNN, torch.nn.LSTM: LSTM, torch.nn.GRU: GRU}
M = TypeVar("M", bound=Module)


def replace(model: M) -> M:
    """Put throughtime's modules in the place of every ``torch.nn.RNN``, ``LSTM`` and ``GRU`` inside a model.

    The model is changed and returned. Its parameters stay the very same objects, so an optimiser made before goes on; a
    module that stands in several places still is one; the training flag and hooks go along. Subclasses are left as
    they are, for they may have a forward of their own, and so is what a model holds outside of its modules (in a plain
    list, say).

    Parameters
    ----------
    model : torch.nn.Module
        Where it is such a module itself, it is left alone, and a new one that shares its parameters is returned.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If `model` is no module.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(8, 16), "head": torch.nn.Linear(16, 1)})
    >>> throughtime.torch.replace(model)["rnn"]
    LSTM(8, 16)
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    made: dict[Module, Recurrent] = {}
    found = _ours(model, made)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = _ours(child, made)
    return found  # type: ignore[return-value]  # a subclass of what it stands for


def _ours(module: Module, made: dict[Module, Recurrent]) -> Module:
    """What takes this module's place; itself, where it is none of torch's."""
    kind = _OURS.get(type(module))
    if kind is None or not isinstance(module, RNNBase):
        return module
    if module not in made:
        made[module] = kind._of(module)
    return made[module]
