"""What `_core`'s pool keeps is given back where NumPy has no memory for an array of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from . import _core

P = ParamSpec("P")
R = TypeVar("R")


def with_room(call: Callable[P, R]) -> Callable[P, R]:
    """`call`, which is made once more, without the pool's free memory, where it raises MemoryError.

    It must not have changed anything by then. Arrays of `_core` need no such care: their allocator does the same.
    """

    @functools.wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except MemoryError:
            pass  # what the call has made is freed here
        _core.empty_cache()
        return call(*args, **kwargs)

    return called
