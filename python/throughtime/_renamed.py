"""The module names in pickles of earlier versions, for the classes that such pickles may contain."""

from __future__ import annotations

import sys
from types import ModuleType

from .analysis.flow_result import GradientFlow, StackFlow
from .layers.activations import GELU, ReLU, Sigmoid, Tanh
from .layers.attention import SelfAttention
from .layers.batch_norm import BatchNorm
from .layers.embedding import Embedding
from .layers.layer import _Held
from .layers.layer_norm import LayerNorm
from .layers.linear import Linear
from .layers.mlp import MLP
from .layers.residual import ResidualBlock
from .layers.sequential import Sequential
from .recurrent import Gradients

_BEFORE: dict[str, tuple[type, ...]] = {
    "activations": (GELU, ReLU, Sigmoid, Tanh),
    "attention": (SelfAttention,),
    "batch_norm": (BatchNorm,),
    "blocks": (LayerNorm, ResidualBlock, Sequential),
    "flow_result": (GradientFlow, StackFlow),
    "layer": (_Held,),
    "mlp": (MLP,),
    "modules": (Embedding, Linear),
    "tape": (Gradients,),
}


def remember() -> None:
    """Let pickle find the classes under the earlier names of their modules."""
    for name, classes in _BEFORE.items():
        module = ModuleType(f"{__package__}.{name}", "For pickles of earlier versions.")
        vars(module).update({kind.__name__: kind for kind in classes})
        sys.modules[module.__name__] = module
