"""Memory of NumPy's arrays: what to do if there is none left, and which arrays of copies and pickles to copy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from . import _core

P = ParamSpec("P")
R = TypeVar("R")


def with_room(call: Callable[P, R]) -> Callable[P, R]:
    """Wrap `call`: if it raises MemoryError, release the pool's free memory and call it once more.

    `call` must not have changed anything before it raises. `_core`'s own allocator does the same for its arrays.
    """

    @functools.wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except MemoryError:
            pass  # the arrays of the failed call are freed here
        _core.empty_cache()
        return call(*args, **kwargs)

    return called


@with_room
def writable(value: Any) -> Any:
    """`value` with copies of the arrays in it that may not be written: views of a file (joblib) or of bytes (pickle 5).

    `value` may be an array, or a dict, list or tuple of values. Kernels refuse arrays that may not be written.
    """
    if isinstance(value, np.ndarray):
        return value if type(value) is np.ndarray and value.flags.writeable else np.array(value)
    if isinstance(value, dict):
        return {name: writable(inner) for name, inner in value.items()}
    return type(value)(map(writable, value)) if type(value) in (list, tuple) else value
