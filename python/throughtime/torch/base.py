"""The base of all modules here: plain option values, a name with the package, and one node per call in FX graphs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.fx import Proxy
from torch.nn import Module

from .._torch_modules import full_name
from .unsupported import unsupported


class Base(Module):
    """A module of this package."""

    _plain: ClassVar[frozenset[str]]  # attributes that are stored as Python's own numbers and strings

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain(value) if name in self._plain else value)

    def _get_name(self) -> str:
        """The name in `repr`; a subclass outside this package keeps its own."""
        kind = type(self)
        return f"throughtime.torch.{kind.__name__}" if kind.__module__.startswith(f"{__package__}.") else kind.__name__


def plain(value: Any) -> Any:
    """Convert scalars of NumPy or torch, and of subclasses, to Python's own bool, int, float or str; else `value`.

    Options are written into the text of a plan and into pickles, from which no other type can be read back.
    """
    if isinstance(value, tuple | list):
        return tuple(plain(entry) for entry in value)
    if isinstance(value, np.generic | np.ndarray | Tensor) and not value.ndim:
        value = value.item()
    if isinstance(value, np.floating):  # more bits than Python's float
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def kind_of(value: Any) -> str:
    """The class of an argument, for error messages."""
    if isinstance(value, tuple | list) and 0 < len(value) <= 4:
        return f"a {type(value).__name__} of {', '.join(map(kind_of, value))}"
    return f"the class {full_name(value)}" if isinstance(value, type) else full_name(type(value))


def check_is_tensor(name: str, value: Any, expected: str = "a tensor") -> None:
    """Raise TypeError unless `value` is a tensor."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, Proxy):
        raise unsupported("torch.fx.symbolic_trace of functions, only of modules inside a model")
    raise TypeError(f"{name} must be {expected}, got {kind_of(value)}")


def as_node(module: Module, *arguments: Any) -> Any:
    """Record a call of `module` as one node of the graph that torch.fx is tracing, as it does for torch's modules."""
    tracer = next(argument for argument in arguments if isinstance(argument, Proxy)).tracer
    try:
        path = tracer.path_of_module(module)  # type: ignore[attr-defined]  # every tracer that calls modules has it
    except NameError:
        path = ""
    if not path:
        raise unsupported("torch.fx.symbolic_trace of a module by itself or in a function, only inside a model")
    return tracer.create_proxy("call_module", path, arguments, {})
