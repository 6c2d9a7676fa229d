"""The recorders that `record` registers, to which backward passes report the gradients at every timestep."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Module

from ..recurrent import Gradients
from ..recurrent.backward import Loss
from ..recurrent.observers import Key, observers_of, observing
from ..recurrent.record import Record
from .places import tensor_of

RECORDED = ("hidden", "cell", "gates", "parameter_norms")  # of the names that a backward may return


class BackwardTimesteps:
    """The gradients of one backward pass of a module at every timestep, as far as they were asked for.

    Attributes
    ----------
    hidden, cell, gates, parameter_norms
        As in :class:`throughtime.Gradients`, but tensors.
    """

    hidden: Tensor
    cell: Tensor
    gates: Tensor
    parameter_norms: dict[str, Tensor]

    def __init__(self, grads: Gradients, asked: set[str]) -> None:
        found = {name: vars(grads)[name] for name in RECORDED if name in asked and name in vars(grads)}
        norms = found.pop("parameter_norms", None)
        self.__dict__.update({name: tensor_of(array) for name, array in found.items()})
        if norms is not None:
            self.parameter_norms = {name: tensor_of(array) for name, array in norms.items()}

    def __repr__(self) -> str:
        return f"BackwardTimesteps({', '.join(vars(self))})"


class Timesteps:
    """The recorder that `record` fills. It has the attributes of `BackwardTimesteps` of the last backward pass.

    Attributes
    ----------
    backwards : list of BackwardTimesteps
        One entry per backward pass, in the order in which they ran: if a loss depends on several calls of the module,
        its last call comes first.
    asked : set of str
    """

    hidden: Tensor
    cell: Tensor
    gates: Tensor
    parameter_norms: dict[str, Tensor]

    def __init__(self, asked: set[str]) -> None:
        self.asked = asked
        self.backwards: list[BackwardTimesteps] = []

    def wanted(self) -> set[str]:
        """See `Observer`."""
        return self.asked

    def take(self, record: Record, loss: Loss, grads: Gradients) -> None:
        """See `Observer`."""
        self.backwards.append(BackwardTimesteps(grads, self.asked))

    if not TYPE_CHECKING:  # type checkers would accept any name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name not in RECORDED:
                raise AttributeError(f"timesteps have no {name!r}")
            if not self.backwards:
                raise AttributeError(f"timesteps.{name}: no backward pass of this module has run yet")
            if name not in vars(self.backwards[-1]):
                raise AttributeError(
                    f"timesteps.{name} was not recorded: record(module, timesteps=({name!r}, ...)) asks for it; "
                    "only the LSTM has 'cell'"
                )
            return getattr(self.backwards[-1], name)

    def __repr__(self) -> str:
        return f"Timesteps({len(self.backwards)} backwards of {', '.join(sorted(self.asked))})"


def address_of(weights: Sequence[Tensor]) -> int:
    """The key of a call: the address of the memory of the module's first weight, which compiled graphs see too."""
    return weights[0].data_ptr()


def stored_weight(module: Module, name: str) -> Tensor | None:
    """A weight of a module; None if it is parametrized. Reading it then would compute it, and spectral norms change."""
    found = module._parameters.get(name)
    return vars(module).get(name) if found is None else found  # older hooks set plain attributes


def key_of(module: Module, name: str) -> Key:
    """The key of a module's next calls, given the name of its first weight. It does not keep the module alive."""
    reference = weakref.ref(module)

    def key() -> int | None:
        alive = reference()
        if alive is None:
            return None
        weight = stored_weight(alive, name)
        return 0 if weight is None else weight.data_ptr()

    return key


@contextmanager
def recording(key: Key, recorder: Timesteps) -> Iterator[None]:
    """Register the recorder of the module with this key.

    Raises
    ------
    ValueError
        If the module has one already.
    """
    present = key()
    if present and any(isinstance(other, Timesteps) for other in observers_of(present)):
        raise ValueError("module is being recorded already")
    with observing(key, recorder):
        yield
