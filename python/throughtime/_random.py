"""The random masks of training: numbers of Philox, each a function of a key and its position. See docs/random.md."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ._arguments import Array

_lock = threading.RLock()  # of all counts of passes
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Draw(NamedTuple):
    """The random numbers of one mask.

    Attributes
    ----------
    key : (int, int)
        That of the layer's `MaskStream`.
    mask : int
        Which mask of the layer it is; see `Architecture.mask_shapes`.
    number : int
        How many forward passes drew masks before.
    """

    key: tuple[int, int]
    mask: int
    number: int

    def words(self, count: int) -> Array:
        """The first `count` numbers, uint32. They depend on nothing else, not even on NumPy's version."""
        key, counter = np.array(self.key, np.uint64), np.array([0, 0, self.mask, self.number], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw((count + 1) // 2)
        return words.astype("<u8", copy=False).view("<u4")[:count]


def threshold(probability: float) -> int:
    """A mask is true where its number is below this, at most 2^32."""
    return round(probability * (1 << 32))


@dataclass
class MaskStream:
    """Where a recurrent layer is in its random numbers."""

    key: tuple[int, int]
    passes: int = 0  # forward passes that drew masks

    @classmethod
    def after(cls, rng: np.random.Generator) -> MaskStream:
        """A stream whose key is what `rng`, which has drawn the initial weights, would give next; it stays as it is."""
        first, second = (int(word) for word in copy.deepcopy(rng.bit_generator).random_raw(2))
        return cls((first, second))

    def row(self) -> tuple[int, int, int]:
        """The state as three integers below 2^64."""
        return (*self.key, self.passes)

    def set_row(self, row: Iterable[int]) -> None:
        """Continue from a state."""
        first, second, self.passes = map(int, row)
        self.key = first, second

    def next_pass(self) -> int:
        """Count a forward pass, which may run in several threads; returns how many there were before."""
        with _lock:
            number = self.passes
            self.passes = (number + 1) % (1 << 64)
        return number
