"""torch.autocast as precision of matrix products."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config import get_matmul_precision, set_matmul_precision

_lock = threading.Lock()
_calls = 0  # now running in "medium"
_before = "highest"


def is_medium(device: str) -> bool:
    """Whether autocast asks for products in bfloat16 on devices of this type."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.bfloat16


@contextmanager
def medium() -> Iterator[None]:
    """Products in bfloat16 inside. The setting is the process's: calls of other threads meanwhile have it too."""
    global _calls, _before
    with _lock:
        if not _calls:
            _before = get_matmul_precision()
        _calls += 1
        set_matmul_precision("medium")
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if not _calls:
                set_matmul_precision(_before)
