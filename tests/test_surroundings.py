"""The surroundings of a process: the cores that it may use, small stacks of threads, other interpreters."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest

import throughtime as tt
from problems import FORMS, Problem
from test_process import run_python
from throughtime import _core


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux sets the cores of a process")
def test_the_default_is_a_thread_per_usable_core():
    """At the first call; later changes of the cores affect neither the number of threads nor the results."""
    script = """
        import os
        for name in ("THROUGHTIME_NUM_THREADS", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        import numpy as np, throughtime as tt
        from throughtime import _core
        print(tt.get_num_threads(), _core.usable_cores() == 1)
        x = np.ones((50, 4, 8), np.float32)
        layer = tt.LSTM(8, 64, seed=0)
        expected = layer(x)[0]
        tt.set_num_threads(3)  # three threads on one core
        print(np.array_equal(layer(x)[0], expected))
        os.sched_setaffinity(0, cores)
        print(np.array_equal(layer(x)[0], expected), _core.usable_cores() == len(cores), tt.get_num_threads())
        os.sched_setaffinity(0, {max(cores)})
        print(np.array_equal(layer(x)[0], expected))
    """
    assert run_python(script).splitlines() == ["1 True", "True", "True True 3", "True"]


@pytest.mark.parametrize("kind", FORMS)
def test_threads_with_small_stacks(kind, threads):
    """256 KiB, of which Python itself takes a part; the library's other threads have the system's stack."""
    threads(2)
    problem = Problem(kind, T=9, B=9, I=20, H=40, L=2, D=2, dtype="float32")
    layer, found = problem.layer(), []

    def work():
        tape = layer.forward(problem.x, problem.state, memory=3)
        found.append(tape.backward(**problem.loss, timesteps=("hidden", "parameter_norms"), clip=1.0).input)
        found.append(tt.gradient_flow(layer, problem.x).log10_norm)

    before = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    small = list(found)
    work()
    assert len(small) == 2
    assert all(np.array_equal(one, other) for one, other in zip(small, found[2:], strict=True))


@pytest.mark.skipif(not hasattr(_core, "__file__") or sys.platform != "linux", reason="imports a private module")
def test_another_interpreter_of_the_process_is_an_import_error():
    script = """
        import throughtime
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        other = interpreters.create()
        code = '''if True:
            try:
                import throughtime
                print("imported")
            except ImportError as error:
                print("ImportError")
        '''
        interpreters.run_string(other, code)
    """
    assert run_python(script) == "ImportError"
