"""Child processes of every kind can make calls, whatever the parent was doing when they began; so can the parent."""

from __future__ import annotations

import multiprocessing
import sys
import textwrap

import numpy as np
import pytest

import throughtime as tt
from test_process import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

PROGRAM = """
    import faulthandler, os, sys, threading
    import numpy as np
    import throughtime as tt
    from throughtime import _core

    faulthandler.dump_traceback_later(100, exit=True)
    tt.set_num_threads(2)
    _core.force(split="units")  # several threads, even for small calls
    layer = tt.GRU(6, 40, seed=0)
    x = np.random.default_rng(0).standard_normal((20, 3, 6), dtype=np.float32)

    def step():
        tape = layer.forward(x)
        return tape.backward(np.ones_like(tape.output)).parameters["weight_hh_l0"]

    def in_child(body):
        child = os.fork()
        if child == 0:
            try:
                body()
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
            os._exit(0)
        return child

    def ends_well(child):
        return os.waitpid(child, 0)[1] == 0

    def equal():
        assert np.array_equal(step(), expected)
"""


def run(script):
    return run_python(textwrap.dedent(PROGRAM) + textwrap.dedent(script))


def test_a_child_from_before_the_first_call():
    """The child makes the first call; afterwards the parent starts its own threads."""
    script = """
        child = in_child(step)
        expected = step()
        print(ends_well(child), ends_well(in_child(equal)))
    """
    assert run(script) == "True True"


def test_a_child_of_a_child():
    script = """
        expected = step()

        def middle():
            equal()
            child = in_child(equal)
            equal()
            assert ends_well(child)

        print(ends_well(in_child(middle)))
        equal()
    """
    assert run(script) == "True"


def test_children_from_within_other_threads_calls():
    """Two threads make calls and use the pool all the time, so that most forks happen within one."""
    script = """
        expected = step()
        over = False

        def work():
            while not over:
                equal()
                _core.empty((300, 300), np.dtype(np.float32))
                tt.empty_cache()

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        print(all(ends_well(in_child(equal)) for _ in range(25)))
        over = True
        for thread in threads:
            thread.join()
        equal()
    """
    assert run(script) == "True"


def total(layer):
    """Runs in a worker of `multiprocessing`."""
    return float(layer(np.ones((5, 2, 3), np.float32))[0].sum())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")  # jax's, if another test imported it
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method):
    layer = tt.LSTM(3, 4, seed=0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(total, [layer] * 4, chunksize=1) == [total(layer)] * 4
