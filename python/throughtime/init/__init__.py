"""Initial weights: `apply` sets those of a whole layer or stack in place; the other functions draw one array.

Fans, gains and defaults are those of ``torch.nn.init``. The functions that return an array change no layer: the caller
writes the array into the layer's parameters.
"""

from .arrays import chrono, identity, kaiming_normal, kaiming_uniform, orthogonal, xavier_normal, xavier_uniform
from .layers import apply

__all__ = [
    "apply",
    "chrono",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "orthogonal",
    "xavier_normal",
    "xavier_uniform",
]
