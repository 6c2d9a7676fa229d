"""Release the free memory of `_core`'s pool if NumPy cannot allocate an array."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

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
