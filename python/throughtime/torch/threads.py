"""One pool of threads for torch's operators and the library's kernels: torch's own, of its OpenMP runtime.

Two pools would take the cores from each other: the threads of either spin for a while when their work is done.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from .. import _core

_FUNCTIONS = (
    "GOMP_parallel",
    "__kmpc_fork_call",
    "__kmpc_push_num_threads",
    "__kmpc_global_thread_num",
    "omp_in_parallel",
    "omp_get_thread_num",
    "omp_get_max_threads",
)
_OF_ITS_KIND = ({"GOMP_parallel"}, {"__kmpc_fork_call", "__kmpc_push_num_threads", "__kmpc_global_thread_num"})
_OF_ALL = {"omp_in_parallel", "omp_get_thread_num", "omp_get_max_threads"}


def borrow() -> None:
    """Run the library's calls on torch's threads, where torch's OpenMP runtime is found in this process."""
    for functions in map(_functions, _libraries()):
        if functions.keys() >= _OF_ALL and any(functions.keys() >= kind for kind in _OF_ITS_KIND):
            _core.borrow_threads(functions)
            return


def _libraries() -> list[str | None]:
    """Where torch's own calls into the runtime lead: what all libraries see, then what torch's library depends on."""
    folder = Path(torch.__file__).parent / "lib"
    return [
        None,
        *(str(path) for name in ("libtorch_cpu.so", "libtorch_cpu.dylib") if (path := folder / name).exists()),
    ]


def _functions(library: str | None) -> dict[str, int]:
    """The addresses of those functions of an OpenMP runtime that a library, or the whole process, sees."""
    found = {}
    loaded = ctypes.CDLL(library)
    for name in _FUNCTIONS:
        try:
            found[name] = ctypes.cast(loaded[name], ctypes.c_void_p).value or 0
        except AttributeError:
            continue
    return found
