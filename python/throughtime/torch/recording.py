"""`record`: the gradient at every timestep of the backward passes inside a with statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.rnn import RNNBase

from ..recurrent.tape import Gradients, check_timesteps
from .base import kind_of
from .places import tensor_of

_TIMESTEPS = ("hidden", "cell", "gates", "parameter_norms")


class BackwardTimesteps:
    """What one backward pass of a module gave for every timestep, as far as it was asked for.

    Attributes
    ----------
    hidden, cell : (L*D, T, B, H) tensor
        Total dL/dh_t and dL/dc_t.
    gates : (L*D, T, B, G*H) tensor
        Gradient of the input's part of the pre-activations.
    parameter_norms : dict of str to (T,) float64 tensor
        Frobenius norm of what each timestep adds to each parameter's gradient.
    """

    def __init__(self, grads: Gradients) -> None:
        found = {name: vars(grads)[name] for name in _TIMESTEPS if name in vars(grads)}
        norms = found.pop("parameter_norms", None)
        self.__dict__.update({name: tensor_of(array) for name, array in found.items()})
        if norms is not None:
            self.parameter_norms = {name: tensor_of(array) for name, array in norms.items()}

    def __repr__(self) -> str:
        return f"BackwardTimesteps({', '.join(vars(self))})"


class Timesteps:
    """What `record` fills: attributes of `BackwardTimesteps`, of the last backward pass.

    Attributes
    ----------
    backwards : list of BackwardTimesteps
        Of every backward pass, in the order in which they ran: where a loss was made of several calls of the module,
        its last call comes first.
    asked : set of str
    """

    def __init__(self, asked: set[str]) -> None:
        self.asked = asked
        self.backwards: list[BackwardTimesteps] = []

    def add(self, grads: Gradients) -> None:
        """Take over what a backward pass found."""
        self.backwards.append(BackwardTimesteps(grads))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in _TIMESTEPS:
            raise AttributeError(f"timesteps have no {name!r}")
        if not self.backwards:
            raise AttributeError(f"timesteps.{name}: no backward pass of this module has run yet")
        if name not in vars(self.backwards[-1]):
            raise AttributeError(
                f"timesteps.{name} is not there: record(module, timesteps=({name!r}, ...)) asks for it; "
                "only the LSTM has 'cell'"
            )
        return getattr(self.backwards[-1], name)

    def __repr__(self) -> str:
        return f"Timesteps({len(self.backwards)} backwards of {', '.join(sorted(self.asked))})"


_active: dict[int, Timesteps] = {}  # by address


def address_of(weights: Sequence[Tensor]) -> int:
    """What a module is known by: its first weight's memory, which compiled graphs see too."""
    return weights[0].data_ptr()


def active(address: int) -> Timesteps | None:
    """The recorder of the module with this address."""
    return _active.get(address)


@contextmanager
def record(module: Module, timesteps: Iterable[str] = _TIMESTEPS) -> Iterator[Timesteps]:
    """Record the gradient at every timestep of each backward pass of a module inside.

    Parameters
    ----------
    module : RNN, LSTM or GRU
        Of this package, by itself or part of a model.
    timesteps : iterable of {"hidden", "cell", "gates", "parameter_norms"}
        What to record; ``"cell"`` is ignored by cells without c.

    Yields
    ------
    Timesteps
        Its attributes are those of the last backward pass, ``backwards`` has all of them.

    Raises
    ------
    TypeError
        If `module` is something else.
    ValueError
        If `timesteps` has another word, or the module is being recorded already.
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
    from .modules import Recurrent

    if not isinstance(module, Recurrent):
        raise TypeError(f"module must be a throughtime.torch.RNN, LSTM or GRU, got {kind_of(module)}{_hint(module)}")
    recorder, address = Timesteps(check_timesteps(timesteps, _TIMESTEPS)), address_of(module._weights())
    if address in _active:
        raise ValueError("module is being recorded already")
    _active[address] = recorder
    try:
        yield recorder
    finally:
        del _active[address]
    if not recorder.backwards:
        raise RuntimeError(
            "no backward pass of this module ran inside record(...), where the backward belongs (the forward may stand "
            "before); a module whose weight_ih_l0 is computed anew at each call cannot be recognised, nor a "
            "compiled one whose saved tensors hooks have copied"
        )


def _hint(module: Any) -> str:
    """Where in a model, or how from a module of torch's, there is one to record."""
    from .modules import Recurrent

    if isinstance(module, RNNBase):
        return "; throughtime.torch.replace makes one of torch's own"
    if not isinstance(module, Module):
        return ""
    inner = [name for name, part in module.named_modules() if isinstance(part, Recurrent)]
    return f", which has one at {', '.join(map(repr, inner))}" if inner else ""
