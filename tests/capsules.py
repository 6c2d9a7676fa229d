"""A producer of DLPack capsules that counts how often they are deleted: the C structures around NumPy's memory."""

from __future__ import annotations

import ctypes

import numpy as np

CODES = {"i": 0, "u": 1, "f": 2, "b": 6, "c": 5}


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", DELETER))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Producer:
    """Gives `array` by DLPack, like a library before or after version 1.0; counts the deletions in `deleted`.

    With `offset`, the data pointer is that many bytes before the first number. Without `strides`, that field is null.
    """

    def __init__(self, array, *, major=1, read_only=False, offset=0, strides=True, device=None, lanes=1):
        self.array, self.major, self.deleted, self.given = array, major, 0, None
        self.device = device or (1, 0)
        kind = array.dtype.kind
        tensor = Tensor(array.ctypes.data - offset, *self.device, array.ndim, CODES[kind], array.itemsize * 8, lanes)
        self._shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self._strides = (ctypes.c_int64 * array.ndim)(*(stride // array.itemsize for stride in array.strides))
        tensor.shape, tensor.byte_offset = self._shape, offset
        if strides:
            tensor.strides = self._strides
        self._deleter = DELETER(self._delete)
        if major:
            self._managed = Versioned(major, 0, None, self._deleter, int(read_only), tensor)
        else:
            self._managed = Managed(tensor, None, self._deleter)
        self._name = b"dltensor_versioned" if major else b"dltensor"

    def _delete(self, _):
        self.deleted += 1

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, **others):
        if others and not self.major:
            raise TypeError("an unexpected keyword argument")
        return _new(ctypes.addressof(self._managed), self._name, None)


class Interface:
    """Gives `array` by ``__cuda_array_interface__``."""

    def __init__(self, array, **changes):
        shown = array.__array_interface__
        self.array = array
        self.__cuda_array_interface__ = {
            **{name: shown[name] for name in ("shape", "typestr", "data", "strides")},
            "version": 3,
            **changes,
        }


def bits(array):
    return np.ascontiguousarray(array).tobytes()
