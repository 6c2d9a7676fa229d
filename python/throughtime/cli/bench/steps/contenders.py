"""The contenders by name, and the kind of process in which each runs the training program."""

from __future__ import annotations

from ..layers.implementations import OURS
from .program import Maker

NUMPY = OURS
MODULES = "throughtime.torch"
TORCH = "torch"  # torch.nn: the numerator of every ratio is its time
COMPILED = "torch-compile"
AGAINST = (TORCH, COMPILED)
# The NumPy program's process must not import torch. The programs in torch share a process, and so its allocator.
PROCESSES = {NUMPY: "numpy", MODULES: "torch", TORCH: "torch", COMPILED: "torch"}


def load(name: str) -> Maker:
    """Return the maker of this contender's program; imports torch if needed."""
    if name == NUMPY:
        from .numpy_program import NumpyProgram

        return NumpyProgram
    from .torch_program import BY_NAME

    return BY_NAME[name]


def load_reference() -> Maker:
    """Return the maker of torch.nn's program in float64, the reference for all answers."""
    from .torch_program import double

    return double
