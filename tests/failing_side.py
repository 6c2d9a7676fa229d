"""Makes every allocation of each call of `_core` fail, one after the other; the library of failing.cpp is preloaded.

``failing_side.py bindings`` fails the C++ code's allocations, ``failing_side.py python`` Python's during the calls, and
``failing_side.py threads`` refuses to start threads. Prints one line per call.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from itertools import count

import numpy as np

import throughtime as tt
from test_core import CALLS, F32, B, H, T, array, recurrent, recurrent_gradients
from throughtime import _core

CALLS["forward plain"] = lambda: ["lstm", without_options(recurrent() | {"output": array(T, B, H)})]
CALLS["backward plain"] = lambda: ["lstm", without_options(recurrent()), without_options(recurrent_gradients())]
CALLS["empty"] = lambda: [(1000, 1000), F32]
CALLS["sgd"] = lambda: [[tuple(np.full(1000, 0.5, np.float32) for _ in range(3))], 0.1, 0.9]
CALLS["clip"] = lambda: [[np.full(1000, 0.5, np.float32)], 1e9]


def without_options(arguments):
    """The arguments without groups that may be missing."""
    return {
        name: value for name, value in arguments.items() if name in ("parameters", "states") or type(value) is not dict
    }


def call(name, arguments):
    return getattr(_core, name.split()[0])(*arguments)


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(inner)


def outcome(name, arguments):
    """What a call wrote and returned, as bytes."""
    returned = call(name, arguments)
    written = [array.tobytes() for array in arrays_in(arguments)]
    return written, None if isinstance(returned, np.ndarray) else returned


def fail_each(arm, disarm):
    """Calls each function until no allocation is left that could fail; the same call then has its usual results."""
    for name, arguments in CALLS.items():
        expected = outcome(name, arguments())
        failed = 0
        for n in count():
            given = arguments()
            _core.empty_cache()
            arm(n)
            try:
                call(name, given)
            except MemoryError:
                failed += 1
                continue
            finally:
                ended = disarm()
            if ended:
                break
        assert outcome(name, arguments()) == expected, name
        print(name, failed)


def fail_allocations_of_bindings():
    shim = ctypes.CDLL(None)

    for once in (True, False):

        def arm(n, once=once):
            shim.count_allocated()
            shim.fail_after(ctypes.c_long(n), once)
            arm.n = n

        def disarm(arm=arm):
            shim.fail_after(ctypes.c_long(-1), True)
            return shim.count_allocated() <= arm.n

        fail_each(arm, disarm)


def fail_allocations_of_python():
    import _testcapi

    gc.collect()
    gc.freeze()  # so that collections cost nothing

    def arm(n):
        gc.collect()  # Python keeps some free dicts and tuples, but not past a collection
        arm.n = n
        _testcapi.set_nomemory(n, n + 1)

    def disarm():
        _testcapi.remove_mem_hooks()
        return arm.n > 12  # objects; no call makes as many

    fail_each(arm, disarm)


def refuse_threads():
    """A call for which no thread can be started runs on those that there are, and a later one starts more."""
    shim = ctypes.CDLL(None)
    x = np.random.default_rng(0).standard_normal((20, 8, 64), dtype=np.float32)
    layer = tt.LSTM(64, 128, seed=0)
    tt.set_num_threads(1)
    _core.force(split="units")
    expected = layer(x)[0]
    before = _threads()
    tt.set_num_threads(3)
    shim.refuse_threads(1)
    assert np.array_equal(layer(x)[0], expected)
    assert _threads() == before
    shim.refuse_threads(0)
    assert np.array_equal(layer(x)[0], expected)
    assert _threads() == before + 2
    failed = 0
    for n in count():
        tt.set_num_threads(4 + n)
        shim.count_allocated()
        shim.fail_after(ctypes.c_long(n), False)
        try:
            layer(x)
        except MemoryError:
            failed += 1
        shim.fail_after(ctypes.c_long(-1), True)
        allocated = shim.count_allocated()
        assert np.array_equal(layer(x)[0], expected)
        assert _threads() == before + 3 + n  # this call got the threads, so the failed one has left them
        if allocated <= n:
            break
    print("threads", failed)


def _threads():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Threads"))


if __name__ == "__main__":
    tt.set_num_threads(2)
    {"bindings": fail_allocations_of_bindings, "python": fail_allocations_of_python, "threads": refuse_threads}[
        sys.argv[1]
    ]()
