"""The library as part of a process: memory, interrupts, import."""

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
    """A view keeps its block alive; a new array of that size gets the block only afterwards."""
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
    """Every step needs sizes that no earlier step used; the memory kept stays below the documented 2 GiB.

    Measured by this process's own peak: that of `getrusage` starts with the peak of the parent process.
    """
    script = """
        import re, numpy as np
        from throughtime import _core
        for megabytes in range(64, 124):
            _core.empty((megabytes, 1 << 20), np.dtype(np.uint8))[:, ::4096] = 1
        print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    """
    assert int(run_python(script)) < (2 << 20) + (1 << 20)  # KiB: the limit, and the process itself


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_call(threads):
    """The interrupt arrives while the kernel runs, long before its end, and the next call is correct."""
    tt.set_num_threads(threads)
    layer = tt.LSTM(1, 256, seed=0)
    x = np.zeros((2, 1, 1), np.float32)
    expected = layer(x)[0]
    long = np.broadcast_to(x[:1], (1_000_000, 1, 1))  # at least ten seconds of work
    interrupt = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            layer(long)
    finally:
        interrupt.cancel()
    assert np.array_equal(layer(x)[0], expected)


def test_ctrl_c_stops_an_embeddings_gradient():
    """Signals are first checked after a tenth of a second, before the last rows are summed and written."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 1 << 20, 1 << 24)
    d_output = np.ones((1 << 24, 1), np.float32)
    d_weight = np.full((1 << 20, 1), np.nan, np.float32)
    interrupt = threading.Timer(0.02, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            _core.embedding_backward({"indices": indices, "d_output": d_output, "d_weight": d_weight})
    finally:
        interrupt.cancel()
    assert np.isnan(d_weight[-1000:]).all()


def test_import_loads_no_extras():
    script = """
        import sys, throughtime
        print([name for name in ("torch", "jax", "typer", "rich", "matplotlib", "hypothesis") if name in sys.modules])
    """
    assert run_python(script) == "[]"


def run_python(script, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
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


@pytest.mark.skipif(sys.platform != "linux", reason="pages are taken away by mprotect")
def test_freeing_does_not_look_at_what_is_free():
    """Of thousands of free blocks, a request and a release touch a few: the others' memory is inaccessible here."""
    script = """
        import ctypes, mmap
        import numpy as np
        from throughtime import _core

        blocks = [_core.empty(((4 << 20) - 64,), np.dtype(np.uint8)) for _ in range(40)]
        pages = [array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE for array in blocks]
        while blocks:
            del blocks[0]
        kept = _core.empty(((16 << 20) - 64,), np.dtype(np.uint8))
        del kept
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for page in pages[:-1]:
            assert protect(page, mmap.PAGESIZE, 0) == 0  # no access
        for megabytes in (8, 16, 32, 8, 16, 32):
            other = _core.empty(((megabytes << 20) - 64,), np.dtype(np.uint8))
            del other
        for page in pages[:-1]:
            assert protect(page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        _core.empty_cache()
        print("reached none")
    """
    assert run_python(script) == "reached none"


def test_blocks_of_every_size_are_found_again():
    """By a request of their size, or of up to a quarter less."""
    tt.empty_cache()
    for size in [*range(64_000, 70_000, 500), 100_000, 131_072, 1 << 20, 5_000_000, (1 << 24) - 64, 1 << 24]:
        array = _core.empty((size,), np.dtype(np.uint8))
        address = array.ctypes.data
        del array
        if size + 64 >= 65_536:
            for request in (size, size - 1, size - size // 20):
                if request + 64 >= 65_536:
                    assert _core.empty((request,), np.dtype(np.uint8)).ctypes.data == address
        tt.empty_cache()


ROOM = """
    import resource, sys
    import numpy as np
    import throughtime as tt
    from throughtime import _core

    BYTES = np.dtype(np.uint8)

    def leave(megabytes):
        \"\"\"The pool holds 256 MB in blocks of a size; so much is left beside it.\"\"\"
        held = [_core.empty((SIZE << 20,), BYTES) for _ in range(256 // SIZE)]
        for array in held:
            array[::4096] = 1
        del held, array
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("size", [1, 3, 16, 31, 64, 128])
def test_the_pool_gives_way_to_larger_requests(size):
    """Results, scratch and NumPy's arrays, each of 150 MB, with 100 MB left in addition to 256 MB of free blocks."""
    script = f"""
        SIZE = {size}
        {textwrap.indent(textwrap.dedent(ROOM), " " * 8).strip()}
        x = np.zeros((40, 1_000_000), np.float32).T  # a matrix turned: a contiguous copy is NumPy's
        linear = tt.Linear(40, 1, seed=0)
        tt.set_num_threads(1)
        linear(x[:10])
        leave(100)
        if sys.argv[1] == "result":
            assert _core.empty((150 << 20,), BYTES).nbytes == 150 << 20
        else:
            assert linear(x).shape == (1_000_000, 1)
    """
    for what in ("result", "copy"):
        run_python(script, what)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_the_error_says_what_there_is_no_memory_for():
    script = f"""
        SIZE = 64
        {textwrap.indent(textwrap.dedent(ROOM), " " * 8).strip()}
        leave(10)
        for call in (lambda: _core.empty((3, 1 << 28), np.dtype(np.float32)), lambda: tt.Linear(1 << 28, 2)):
            try:
                call()
            except MemoryError as error:
                print(error)
    """
    results = run_python(script).splitlines()
    assert "3221225472 bytes" in results[0]
    assert "(3, 268435456)" in results[0]
    assert "float32" in results[0]
    assert "(2, 268435456)" in results[1]


HANDLED = """
    import faulthandler, os, signal, sys, threading, time
    import numpy as np
    import throughtime as tt

    faulthandler.dump_traceback_later(60, exit=True)
    tt.set_num_threads(int(sys.argv[1]))

    def attention():
        layer = tt.SelfAttention(8, 2, seed=0)
        x = np.zeros((40_000, 1, 8), np.float32)
        return lambda: layer(x)

    def lstm():
        layer = tt.LSTM(1, 64, seed=0)
        x = np.zeros((2, 1, 1), np.float32)
        return lambda: layer(np.broadcast_to(x[:1], (200_000, 1, 1)))[0]

    call = {"attention": attention, "lstm": lstm}[sys.argv[2]]()
"""


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("kernel", ["attention", "lstm"])
def test_signal_handlers_run_in_the_callers_floating_point_mode(kernel, threads):
    """So do the threads that they start: subnormal numbers are not flushed."""
    script = f"""
        {textwrap.indent(textwrap.dedent(HANDLED), " " * 8).strip()}
        tiny = np.array([np.finfo(np.float32).smallest_normal])
        found = []

        def look():
            found.append(float((tiny / 2)[0]) > 0)

        def handler(*_):
            look()
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            raise InterruptedError

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.08)
        try:
            call()
        except InterruptedError:
            print(found, float((tiny / 2)[0]) > 0)
    """
    assert run_python(script, threads, kernel) == "[True, True] True"


FORKING = f"""
    {HANDLED.strip()}
    expected = call() if sys.argv[1] == "1" else None

    def handler(*_):
        global child
        child = os.fork()
        if child:
            raise InterruptedError

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.08)
    try:
        found = call()
        outcome = "the same" if expected is not None and np.array_equal(found, expected) else "finished"
    except InterruptedError:
        outcome = "interrupted"
    except RuntimeError as error:
        outcome = str(error)
    small = np.ones((3, 1, 1), np.float32)
    again = np.array_equal(tt.LSTM(1, 4, seed=0)(small)[0], tt.LSTM(1, 4, seed=0)(small)[0])
    os.write(1, f"{{outcome}} {{again}}\\n".encode())
    if child == 0:
        os._exit(0)
    os.write(1, f"child {{os.waitpid(child, 0)[1]}}\\n".encode())
"""


@pytest.mark.parametrize("kernel", ["attention", "lstm"])
def test_a_fork_in_a_signal_handler_during_a_call_of_one_thread(kernel):
    """The child finishes the call."""
    lines = run_python(FORKING, "1", kernel).splitlines()
    assert sorted(lines) == ["child 0", "interrupted True", "the same True"]


@pytest.mark.parametrize("kernel", ["attention", "lstm"])
@pytest.mark.parametrize("torch", [False, True])
def test_a_fork_in_a_signal_handler_during_a_call_of_many_threads(kernel, torch):
    """The other threads do not exist in the child, which raises an error instead of waiting for them; later calls work.
    If the cores are busy, the call may be left with one thread; then the child finishes it."""
    start = ""
    if torch:
        pytest.importorskip("torch")
        start = "import torch, throughtime.torch; torch.set_num_threads(2); torch.ones(1 << 20).exp_()"
    lines = run_python(f"{start}\n{textwrap.dedent(FORKING)}", "2", kernel).splitlines()
    error = "this process was forked during the call, whose other threads exist in the parent alone True"
    lines.remove("child 0")
    lines.remove("interrupted True")
    assert lines in ([error], ["finished True"])


def test_an_exception_in_a_forked_childs_handler_is_what_the_call_raises():
    script = FORKING.replace("if child:\n            raise InterruptedError", "raise InterruptedError")
    assert run_python(script, "2", "lstm").splitlines() == ["interrupted True", "interrupted True", "child 0"]
