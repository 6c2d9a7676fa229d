"""One thread pool for torch's operators and the library's kernels: that of torch's OpenMP runtime.

Two pools would compete for the cores: the threads of each spin for a while after their work is done.
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
    """Run the library's calls on torch's threads, if this process has torch's OpenMP runtime."""
    for functions in map(_functions, _libraries()):
        if functions.keys() >= _OF_ALL and any(functions.keys() >= kind for kind in _OF_ITS_KIND):
            _core.borrow_threads(functions)
            return


def _libraries() -> list[str | None]:
    """Where to look up torch's runtime: in the global symbols (None), then in the dependencies of torch's library."""
    folder = Path(torch.__file__).parent / "lib"
    return [
        None,
        *(str(path) for name in ("libtorch_cpu.so", "libtorch_cpu.dylib") if (path := folder / name).exists()),
    ]


def _functions(library: str | None) -> dict[str, int]:
    """The addresses of the OpenMP functions visible to a library, or to the whole process (None)."""
    found = {}
    loaded = ctypes.CDLL(library)
    for name in _FUNCTIONS:
        try:
            found[name] = ctypes.cast(loaded[name], ctypes.c_void_p).value or 0
        except AttributeError:
            continue
    return found
