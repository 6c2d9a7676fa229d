"""torch.compile: let its tracer trace our modules, although they subclass classes that it refuses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_BUILDER = "torch._dynamo.variables.builder"


def is_traced(x: Tensor) -> bool:
    """Whether a call is being traced into a graph, so that it must be an operator."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter) or is_in_torch_dispatch_mode()


def let_dynamo_trace(kind: type[Module]) -> None:
    """Let torch.compile trace into modules of this kind.

    Dynamo breaks the graph at every instance of torch.nn.RNN, LSTM and GRU, including subclasses, unless
    ``torch._dynamo.config.allow_rnn`` is set. That option would also unroll torch's own modules step by step, so it is
    set only while Dynamo wraps one of ours. Importing Dynamo takes as long as importing torch, so this waits until
    other code imports it.
    """
    builder = sys.modules.get(_BUILDER)
    if builder is not None:
        _allow(builder, kind)
    else:
        sys.meta_path.insert(0, _AfterImport(kind))


def _allow(builder: Any, kind: type[Module]) -> None:
    original = getattr(builder.VariableBuilder, "wrap_module", None)
    if original is None or not hasattr(builder.config, "allow_rnn"):
        return  # another version of torch, which may have another rule: at worst the graph breaks

    def wrap_module(self: Any, value: Module) -> Any:
        with builder.config.patch(allow_rnn=builder.config.allow_rnn or isinstance(value, kind)):
            return original(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


class _AfterImport(MetaPathFinder):
    """Waits for the first import of Dynamo's builder."""

    def __init__(self, kind: type[Module]) -> None:
        self._kind = kind

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _allow(module, self._kind)

        loader.exec_module = exec_module
        return spec
