"""Turns the bytes of a fuzzer into choices: numbers, options, and values of any kind."""

from __future__ import annotations

import numpy as np


class Choices:
    """Choices that depend on the bytes alone; past their end the choice is always the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        width = max(1, (count - 1).bit_length() + 7 >> 3)
        taken = self._data[self._at : self._at + width]
        self._at += width
        return int.from_bytes(taken, "little") % count

    def of(self, options):
        """One of the options."""
        return options[self.below(len(options))]

    def rarely(self) -> bool:
        return self.below(8) == 7

    def rest(self) -> bytes:
        return self._data[self._at :]


def any_value(choices: Choices):
    """A value of any kind that a caller might pass by mistake."""
    plain = [None, True, False, 0, 1, 2, 3, -1, 2**31, 2**62, 2**63, -(2**63), 10**400, 0.0, 0.5, 1.0, -0.5, 1e300]
    plain += [
        float("nan"),
        float("inf"),
        1j,
        "",
        "all",
        "last",
        "full",
        "float64",
        b"bytes",
        (),
        [],
        {},
        [1, 2],
        (0.1, 0.2),
    ]
    plain += [
        {"a": 1},
        {"dropout_l0": None},
        [[1], [2, 3]],
        [None],
        range(3),
        iter(()),
        object,
        NotImplemented,
        "\udc80",
    ]
    plain += [np.float32(0.5), np.int64(3), np.bool_(True), np.timedelta64(1, "s"), np.dtype("f4"), np.float32, "cell"]
    return any_array(choices) if choices.below(2) else choices.of(plain)


def any_array(choices: Choices):
    """An array of up to four small axes, of any dtype, in any memory layout, perhaps not finite."""
    dtypes = [
        "f4",
        "f8",
        "f4",
        "f8",
        "f2",
        ">f4",
        "c8",
        "i1",
        "i8",
        "u8",
        "?",
        "O",
        "U3",
        "S2",
        "m8[s]",
        "M8[D]",
        "V3",
        "i4,f4",
    ]
    shape = tuple(choices.below(6) for _ in range(choices.below(5)))
    dtype = np.dtype(choices.of(dtypes))
    array = np.zeros(shape, dtype)
    if dtype.kind == "f" and array.size:
        array[...] = choices.of([0.0, 0.5, float("nan"), float("inf"), -1e4, 1e-40])
    layouts = [
        lambda: array,
        lambda: np.asfortranarray(array),
        lambda: array[::-1] if array.ndim else array,
        lambda: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
        lambda: np.broadcast_to(array.reshape(-1)[:1], shape) if array.size else array,
        lambda: np.ma.masked_array(array),
        lambda: array.tolist(),
        lambda: memoryview(array) if dtype.kind in "fi" and not dtype.fields and dtype.isnative else array,
    ]
    return choices.of(layouts)()
