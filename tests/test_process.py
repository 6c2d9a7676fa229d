"""What a library owes the process it lives in: memory, interrupts, import."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import throughtime as tt
from throughtime import _core

FLOAT32 = np.dtype(np.float32)


def test_memory_returns_to_the_pool_with_its_last_reference():
    """A view keeps its block alive; a new array of the size gets it only afterwards."""
    tt.empty_cache()
    array = _core.empty((1000, 1000), FLOAT32)
    address, view = array.ctypes.data, array[10:]
    del array
    other = _core.empty((1000, 1000), FLOAT32)
    assert other.ctypes.data != address
    del view
    assert _core.empty((1000, 1000), FLOAT32).ctypes.data == address


def test_pooled_memory_is_aligned_and_any_shape_goes():
    for shape in [(), (0,), (1,), (3, 5), (0, 7, 2), (1 << 20,)]:
        array = _core.empty(shape, FLOAT32)
        assert array.shape == shape
        assert array.flags.writeable
        assert array.size == 0 or array.ctypes.data % 64 == 0


def test_steps_of_changing_sizes_do_not_grow_without_bound():
    """Every step asks for sizes that no earlier one left; what is kept stays below the documented 2 GiB.

    By this process's own peak: that of `getrusage` begins with the one that the process which started it had.
    """
    script = """
        import re, numpy as np
        from throughtime import _core
        for megabytes in range(64, 124):
            _core.empty((megabytes, 1 << 20), np.dtype(np.uint8))[:, ::4096] = 1
        print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    """
    assert int(run_python(script)) < (2 << 20) + (1 << 20)  # KiB: the limit, and what the process needs beside it


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_call(threads):
    """The interrupt arrives while the kernel runs, long before its end, and the next call is right."""
    tt.set_num_threads(threads)
    layer = tt.LSTM(1, 256, seed=0)
    x = np.zeros((2, 1, 1), np.float32)
    expected = layer(x)[0]
    long = np.broadcast_to(x[:1], (1_000_000, 1, 1))  # ten seconds of work at the least
    interrupt = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            layer(long)
    finally:
        interrupt.cancel()
    assert np.array_equal(layer(x)[0], expected)


def test_import_loads_no_extras():
    script = """
        import sys, throughtime
        print([name for name in ("torch", "jax", "typer", "rich", "matplotlib", "hypothesis") if name in sys.modules])
    """
    assert run_python(script) == "[]"


def run_python(script):
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


BUSY = """
import time
end = time.monotonic() + 60
while time.monotonic() < end:
    pass
"""


@pytest.mark.skipif(_core.usable_cores() > 16, reason="would keep too many cores busy")
def test_busy_neighbours_do_not_make_threads_wait_for_each_other():
    """With a barrier at every step, a call takes as many time slices as it has steps: 27 times one thread's time."""
    layer = tt.LSTM(128, 128, seed=0)
    x = np.zeros((1000, 1, 128), np.float32)
    before = tt.get_num_threads()

    def seconds(threads):
        tt.set_num_threads(threads)
        taken = []
        for _ in range(9):
            begin = time.perf_counter()
            layer.forward(x)
            taken.append(time.perf_counter() - begin)
        return sorted(taken)[4]

    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(_core.usable_cores())]
    try:
        time.sleep(0.5)
        assert min(seconds(2) / seconds(1) for _ in range(3)) < 3
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
        tt.set_num_threads(before)
