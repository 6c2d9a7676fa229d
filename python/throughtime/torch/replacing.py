"""`replace`: convert torch's recurrent modules inside a model into these, with the same parameters."""

from __future__ import annotations

import logging
from typing import TypeVar

import torch
from torch.nn import Module
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils.parametrize import is_parametrized

from .base import kind_of
from .modules import GRU, LSTM, RNN, Recurrent

_OURS: dict[type[Module], type[Recurrent]] = {torch.nn.RNN: RNN, torch.nn.LSTM: LSTM, torch.nn.GRU: GRU}
_log = logging.getLogger("throughtime.torch")
M = TypeVar("M", bound=Module)


def replace(model: M) -> M:
    """Replace every ``torch.nn.RNN``, ``LSTM`` and ``GRU`` inside a model by throughtime's module.

    The model is changed in place and returned. Parameters stay the same objects, so an existing optimiser remains
    valid. A module used in several places is replaced by a single one; the training flag and hooks are kept. Left
    unchanged are subclasses, which may override `forward`, cells such as ``LSTMCell``, and modules that are not
    registered with the model (for example in a plain list).

    The logger ``"throughtime.torch"`` reports how many modules were replaced, and which were not and why: as a warning,
    which Python prints by default, if one was left or none was found, else as information.

    Parameters
    ----------
    model : torch.nn.Module
        If it is such a module itself, it stays unchanged, and a new module that shares its parameters is returned.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(8, 16), "head": torch.nn.Linear(16, 1)})
    >>> throughtime.torch.replace(model)["rnn"]
    throughtime.torch.LSTM(8, 16)
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    names = {module: name for name, module in model.named_modules()}
    made: dict[Module, Recurrent] = {}
    left: dict[str, str] = {}
    for module, name in names.items():
        kind = _OURS.get(type(module))
        try:
            reason = _reason(module)
            if kind is not None and isinstance(module, RNNBase):
                made[module] = kind._of(module)
        except (TypeError, ValueError) as error:
            reason = str(error)
        if reason:
            left[name] = f"{kind_of(module)}: {reason}"
    for parent in names:
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]
    _say([names[module] for module in made], left, any(isinstance(module, Recurrent) for module in names))
    return made.get(model, model)  # type: ignore[return-value]  # a subclass of the type that it replaces


def _reason(module: Module) -> str:
    """Why a recurrent module is not replaced; empty if it is replaced, or is not a recurrent module of torch's."""
    if isinstance(module, RNNCellBase):
        return "it is called for one step at a time, but these modules run whole sequences"
    if not isinstance(module, RNNBase) or isinstance(module, Recurrent) or type(module) in _OURS:
        return ""
    if is_parametrized(module):
        return "it is parametrized; replace it first, then parametrize the new module"
    return "a subclass, which may override forward"


def _say(replaced: list[str], left: dict[str, str], has_ours: bool) -> None:
    """Log the replaced modules of a model and those that were left."""

    def place(name: str) -> str:
        return repr(name) if name else "the model itself"

    count = f"{len(replaced)} module{'s' if len(replaced) != 1 else ''}"
    text = f"replace: {count} replaced" + (f" ({', '.join(map(place, replaced))})" if replaced else "")
    if left:
        text += f", {len(left)} left: " + "; ".join(f"{place(name)} ({reason})" for name, reason in left.items())
    elif not (replaced or has_ours):
        text += ": the model has no torch.nn.RNN, LSTM or GRU among its modules"
    _log.log(logging.WARNING if left or not (replaced or has_ours) else logging.INFO, "%s", text)
