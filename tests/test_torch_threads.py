"""One pool of threads: with torch imported, the library's calls run on the threads of torch's OpenMP runtime."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc to count threads")

START = """
import os, threading
import numpy as np
import throughtime as tt
from throughtime import _core

def tasks():
    return set(os.listdir("/proc/self/task"))

def processor_time(task):  # ticks of a thread, in user and system mode
    return sum(map(int, open(f"/proc/self/task/{task}/stat").read().rsplit(")", 1)[1].split()[11:13]))

lstm = tt.LSTM(16, 64, seed=0)
x = np.random.default_rng(0).standard_normal((60, 32, 16)).astype(np.float32)

def step(layer=lstm):
    tape = layer.forward(x)
    grads = tape.backward(np.cos(tape.output))
    return [tape.output.tobytes(), grads.input.tobytes(), *(array.tobytes() for array in grads.parameters.values())]
"""
BORROW = """
import torch, throughtime.torch
torch.set_num_threads(2)
torch.ones(1 << 20).exp_()  # its threads are there now
"""


def check(code, borrow=True, **environment):
    """Runs a program in a separate process whose environment sets no other thread option."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-W",
            "ignore",
            "-c",
            START + (BORROW if borrow else "") + textwrap.dedent(code),
        ],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_torchs_threads_do_the_work_and_give_the_same_bits():
    check(
        """
        tt.set_num_threads(1)
        expected = step()
        _core.set_num_threads(2)
        assert step() == expected  # on a thread of its own
        import torch, throughtime.torch
        tt.set_num_threads(2)
        torch.set_num_threads(2)
        torch.ones(1 << 20).exp_()
        before = tasks()
        assert step() == expected
        assert tasks() == before
    """,
        borrow=False,
    )


def test_no_thread_is_started_beside_torchs():
    check("""
        assert tt.get_num_threads() == 2
        before = tasks()
        module = throughtime.torch.LSTM(16, 64)
        for _ in range(3):
            module(torch.from_numpy(x))[0].sum().backward()
            step()
        assert tasks() == before
    """)


def test_torchs_number_of_threads_counts_unless_ours_is_set():
    check(
        """
        import torch, throughtime.torch
        torch.set_num_threads(3)
        assert tt.get_num_threads() == 3
        torch.set_num_threads(1)
        assert tt.get_num_threads() == 1
        before = tasks()
        expected = step()
        assert tasks() == before
        tt.set_num_threads(2)
        assert tt.get_num_threads() == 2
        assert step() == expected
        assert len(tasks()) == len(before) + 1  # torch has one, and ours is set: a thread of our own
        torch.set_num_threads(5)
        assert tt.get_num_threads() == 2
        assert step() == expected
        tt.set_num_threads(7)  # more than torch has: on threads of its own
        assert step() == expected
    """,
        borrow=False,
    )


def test_our_variable_counts_more_than_torch():
    check(
        """
        import torch, throughtime.torch
        torch.set_num_threads(2)
        assert tt.get_num_threads() == 3
        step()
        """,
        borrow=False,
        THROUGHTIME_NUM_THREADS="3",
    )


def test_one_openmp_thread_means_one_core():
    check(
        """
        import torch, throughtime.torch
        assert tt.get_num_threads() == torch.get_num_threads() == 1
        before = tasks()
        for _ in range(3):
            step()
        others = tasks() - {str(os.getpid())}
        times = {task: processor_time(task) for task in others}
        for _ in range(20):
            step()
        assert tasks() == before
        assert times == {task: processor_time(task) for task in others}
        """,
        borrow=False,
        OMP_NUM_THREADS="1",
    )


def test_a_forked_process_computes_too():
    """Its runtime would wait for threads that the child lacks; forward and backward."""
    check("""
        expected = step()
        child = os.fork()
        same = step() == expected
        if child == 0:
            os._exit(0 if same else 1)
        assert same and os.waitpid(child, 0)[1] == 0
    """)


def test_two_threads_of_python_at_once():
    check("""
        from concurrent.futures import ThreadPoolExecutor
        expected = step()
        with ThreadPoolExecutor(2) as pool:
            for found in [pool.submit(step) for _ in range(20)]:
                assert found.result() == expected
    """)


def test_a_data_loaders_workers_compute():
    check("""
        expected = step()

        class Steps(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, i):
                return int(step() == expected)

        assert [int(same) for same in torch.utils.data.DataLoader(Steps(), num_workers=2)] == [1] * 4
    """)


def test_a_call_within_a_parallel_region_works_alone():
    """As torch's own operators do. The test enters a region of torch's runtime directly."""
    check("""
        import ctypes
        from throughtime.torch import threads
        runtime = next(found for found in map(ctypes.CDLL, threads._libraries()) if hasattr(found, "omp_in_parallel"))
        if not hasattr(runtime, "GOMP_parallel"):
            raise SystemExit(0)
        expected, found = step(), []

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def region(_):
            if runtime.omp_get_thread_num() == 0:
                found.append((tt.get_num_threads(), step()))

        runtime.GOMP_parallel(region, None, 2, 0)
        assert found == [(1, expected)]
    """)


def test_a_call_in_another_threads_backward():
    check("""
        module = throughtime.torch.LSTM(16, 64)

        def gradient():
            module.zero_grad()
            module(torch.from_numpy(x))[0].square().sum().backward()
            return [parameter.grad.numpy().tobytes() for parameter in module.parameters()]

        expected, found = gradient(), []
        thread = threading.Thread(target=lambda: found.append(gradient()))
        thread.start()
        thread.join()
        assert found == [expected]
    """)


@pytest.mark.parametrize("entry", ["GOMP_parallel", "__kmpc_fork_call"])
def test_the_runtime_of_llvm_and_intel(entry):
    """As in torch on macOS and in builds with MKL: the same entry as GNU's runtime, or its own."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if not library.exists():
        pytest.skip("needs intel-openmp")
    check(
        f"""
        import ctypes
        runtime = ctypes.CDLL({str(library)!r})
        names = [{entry!r}, "omp_in_parallel", "omp_get_thread_num", "omp_get_max_threads"]
        if {entry!r} == "__kmpc_fork_call":
            names += ["__kmpc_push_num_threads", "__kmpc_global_thread_num"]
        tt.set_num_threads(1)
        expected = step()
        tt.set_num_threads(2)
        _core.borrow_threads({{name: ctypes.cast(runtime[name], ctypes.c_void_p).value for name in names}})
        runtime.omp_set_num_threads(2)
        assert step() == expected
        before = tasks()
        for _ in range(5):
            assert step() == expected
        assert tasks() == before
        child = os.fork()
        same = step() == expected
        if child == 0:
            os._exit(0 if same else 1)
        assert same and os.waitpid(child, 0)[1] == 0
        """,
        borrow=False,
    )
