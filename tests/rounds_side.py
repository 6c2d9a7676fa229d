"""Many rounds of calls, successful, refused and interrupted; for test_rounds.py. Prints what grew over the second half.

``rounds_side.py ROUNDS`` prints the growth of Python's allocated blocks, of the bytes that the C library's allocator
has handed out, of the resident memory in KiB, and of the number of threads.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

import numpy as np

import throughtime as tt
from throughtime import _core


class MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def allocated():
    """Bytes in use, of blocks in arenas and of mapped ones."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    found = mallinfo2()
    return found.uordblks + found.hblkhd


def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))


def measure():
    gc.collect()
    tt.empty_cache()
    return np.array([sys.getallocatedblocks(), allocated(), status("VmRSS"), status("Threads")])


lstm = tt.LSTM(12, 40, num_layers=2, bidirectional=True, zoneout=0.1, seed=0)
gru = tt.GRU(12, 30, layer_norm=True, seed=0)
stack = tt.Sequential(tt.ResidualBlock(tt.SelfAttention(12, 2, seed=0), 12), tt.MLP(12, 20, seed=0), tt.BatchNorm(12))
optimiser = tt.optim.Adam()
x = np.random.default_rng(0).standard_normal((30, 6, 12), dtype=np.float32)


def one_round(i):
    part = x[: 10 + i % 20, : 1 + i % 6]  # sizes that change
    tape = lstm.forward(part, lengths=[len(part)] * part.shape[1])
    grads = tape.backward(np.ones_like(tape.output), timesteps=("hidden", "gates", "parameter_norms"), clip=1.0)
    tt.clip_grad_norm(grads, 1.0)
    optimiser.step(lstm.parameters, grads.parameters)
    tape = gru.forward(part, memory=4)
    tape.backward(tt.mse(tape.output, np.zeros_like(tape.output))[1])
    tape = stack.forward(part)
    tape.backward(np.ones_like(tape.output))
    tt.gradient_flow(gru, part).summary()
    for wrong in (part.astype(float), part[..., :3], None):
        with suppress(TypeError, ValueError):
            lstm.forward(wrong)
    with suppress(FloatingPointError):
        gru.forward(part).backward(np.full((*part.shape[:2], 30), np.nan, np.float32), check_finite=True)
    _core.force(split="units", interrupt=1, polls_often=True)
    with suppress(KeyboardInterrupt):
        lstm(part)
    _core.force(split="units")


if __name__ == "__main__":
    tt.set_num_threads(2)
    _core.force(split="units")
    rounds = int(sys.argv[1])
    measure()  # the first time leaves objects behind
    for i in range(rounds):
        if i == rounds // 2:
            before = measure()
        one_round(i)
    print(*(measure() - before))
