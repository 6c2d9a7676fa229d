"""A process may end at any time, by any of the usual ways: during a call, with calls of exit handlers, by a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import atexit, os, sys, threading, time
    import numpy as np
    import throughtime as tt

    tt.set_num_threads(2)
    layer = tt.LSTM(1, 128, seed=0)
    x = np.zeros((3, 1, 1), np.float32)

    def long_call():
        layer(np.broadcast_to(x[:1], (1_000_000, 1, 1)))

    def begin(daemon=True):
        threading.Thread(target=long_call, daemon=daemon).start()
        time.sleep(0.3)
"""

ENDINGS = {
    "an exception": ("begin(); print('end', flush=True); raise SystemExit(3)", 3),
    "os._exit": ("begin(); print('end', flush=True); os._exit(3)", 3),
    "a signal": ("begin(); print('end', flush=True); os.kill(os.getpid(), 15); time.sleep(60)", -signal.SIGTERM),
    "an exit handler": ("atexit.register(lambda: print('end', layer(x)[0].shape == (3, 1, 128)))", 0),
    "an exit handler during a call": ("atexit.register(lambda: print('end', layer(x)[0].shape)); begin()", 0),
    "a finaliser": (
        """
class Last:
    def __del__(self, layer=layer, x=x, print=print):
        print("end", layer(x)[0].shape)

last = Last()
""",
        0,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends(ending):
    """At once, with the expected status, and without a word on stderr."""
    code, status = ENDINGS[ending]
    script = textwrap.dedent(PROGRAM) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("end"), done.stdout
    assert done.stderr == ""
