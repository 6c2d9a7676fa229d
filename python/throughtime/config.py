"""Process-wide settings: what is compiled in and in use, and the number of threads."""

from __future__ import annotations

from typing import Any

from . import _core
from ._arguments import choice, size
from .cuda.extension import state as cuda_state

_PRECISIONS = ("highest", "high", "medium")

__version__: str = _core.version


def get_num_threads() -> int:
    """Threads that a call may use: ``THROUGHTIME_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the usable cores.

    Under torchrun, the cores are divided by its processes on this machine (``LOCAL_WORLD_SIZE``), and the value 1 that
    torchrun sets for ``OMP_NUM_THREADS`` is ignored. After ``import throughtime.torch`` the default is torch's number
    of threads, and calls run on torch's threads.

    Returns
    -------
    int
    """
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads for later calls. Results are bit-identical for any number.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is below 1 or above 1024.
    """
    _core.set_num_threads(size("n", n, most=1024))


def get_matmul_precision() -> str:
    """Return the precision of float32 products that :func:`set_matmul_precision` set.

    Returns
    -------
    {"highest", "high", "medium"}
    """
    return _PRECISIONS[3 - _core.get_terms()]


def set_matmul_precision(precision: str) -> None:
    """Set the precision of float32 products of recurrent layers in later calls, if the processor has faster ones.

    Parameters
    ----------
    precision : {"highest", "high", "medium"}
        PyTorch's names. ``"highest"``, the default, is the full accuracy of float32; ``"high"`` keeps about 16 bits of
        each factor, ``"medium"`` 8 (bfloat16). Sums are always float32. The gradients of pre-activations are such
        factors, and bias gradients are sums of them. CUDA and AMX support all three (AMX ``"high"`` from 3 sequences
        on), AVX512_BF16 without AMX supports ``"medium"``. ``"highest"`` replaces a missing precision
        (:func:`show_config` lists the available ones), and applies to float64. A backward, with everything it
        recomputes for ``memory=``, has the precision set when it is called.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    _core.set_terms(3 - _PRECISIONS.index(choice("precision", precision, _PRECISIONS)))


def _precisions_here() -> list[str]:
    """The precisions with separate products on this processor."""
    most = max(_core.bfloat16_terms().values(), default=0)
    return ["highest", *(name for name, terms in (("high", 2), ("medium", 1)) if terms <= most)]


def empty_cache() -> None:
    """Return pooled memory that no array uses to the system."""
    _core.empty_cache()


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show version, instruction sets and threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print them or to return a dict.

    Returns
    -------
    dict of str to object, or None
        With ``"dicts"``, the lines that are printed otherwise.

    Raises
    ------
    ValueError
        If the mode is unknown.

    Examples
    --------
    >>> import throughtime as tt
    >>> tt.show_config("dicts")["version"] == tt.__version__
    True
    """
    choice("mode", mode, ("stdout", "dicts"))
    compiled = _core.levels()
    config = {
        "version": __version__,
        "instruction sets compiled": [name for name, _ in compiled],
        "instruction sets of this machine": [name for name, supported in compiled if supported],
        "instruction set in use": _core.level(),
        "matmul precisions": _precisions_here(),
        "threads": get_num_threads(),
        "cores usable": _core.usable_cores(),
        "CUDA": cuda_state(),
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        print(f"{key:34}{', '.join(value) if isinstance(value, list) else value}")
    return None
