"""Sizes beyond 2^31: strides of inputs, on any machine; kept states, on a machine with the memory, if asked for."""

from __future__ import annotations

import mmap
import os
import sys

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from problems import Problem

GIB = 1 << 30
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # a name since Python 3.13


@pytest.fixture(scope="module")
def far_apart():
    """A function that copies an array (T, B, F) to the same array with more than 2^31 elements between two rows.

    The rows lie in a mapping of which no other pages ever exist.
    """
    if sys.platform != "linux":
        pytest.skip("maps memory without reserving it")
    maps = []

    def spread(array):
        T, B, features = array.shape
        batch, time = (1 << 31) + 64, B * ((1 << 31) + 64) + 192  # in elements
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        maps.append(mmap.mmap(-1, T * time * array.itemsize, flags=flags))
        whole = np.frombuffer(maps[-1], array.dtype)
        strides = [step * array.itemsize for step in (time, batch, 1)]
        found = np.lib.stride_tricks.as_strided(whole, (T, B, features), strides)
        found[...] = array
        return found

    return spread


@pytest.mark.per_level
@pytest.mark.parametrize("kind", ["lstm", "gru_original", "rnn_tanh_layer_norm"])
def test_rows_far_apart(kind, far_apart):
    """x and d_output with strides beyond 2^31 elements, in both directions, as bits of the contiguous arrays'."""
    problem = Problem(kind, T=4, B=3, I=5, H=6, D=2, dtype="float32")
    layer = problem.layer()

    def step(x, d_output):
        tape = layer.forward(x, lengths=[4, 2, 0])
        grads = tape.backward(d_output)
        return {"output": tape.output, "input": grads.input, **grads.parameters}

    assert_same_bits(step(far_apart(problem.x), far_apart(problem.d_output)), step(problem.x, problem.d_output))


def test_attention_to_rows_far_apart(far_apart):
    x = np.random.default_rng(0).standard_normal((4, 3, 8), dtype=np.float32)
    layer = tt.Sequential(tt.SelfAttention(8, 2, seed=0), tt.LayerNorm(8))
    near, far = layer.forward(x), layer.forward(far_apart(x))
    assert np.array_equal(far.output, near.output)
    assert np.array_equal(far.backward(far_apart(x)).input, near.backward(x).input)


def available():
    """Bytes that new programs may use."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) << 10


@pytest.mark.skipif(
    "THROUGHTIME_LARGE_TESTS" not in os.environ, reason="needs 12 GiB; THROUGHTIME_LARGE_TESTS=1 runs it"
)
def test_more_than_two_to_the_31_states():
    """The sequences are copies of one, so each has the states and gradients of a few of them."""
    T, B, H = 1 << 12, (1 << 15) + 8, 16
    assert T * B * H > 1 << 31
    if available() < 12 * GIB:
        pytest.skip("too little memory is available")
    x = np.random.default_rng(0).standard_normal((T, 1, 1), dtype=np.float32)
    layer = tt.RNN(1, H, seed=0)

    def step(batch):
        tape = layer.forward(np.broadcast_to(x, (T, batch, 1)), output="last")
        grads = tape.backward(np.ones((batch, H), np.float32), timesteps=())
        return tape.hidden[0], grads.input[:, :, 0], grads.parameters["weight_hh_l0"]

    states, inputs, weight = step(16)
    many_states, many_inputs, many_weight = step(B)
    for b in (0, B // 2, B - 9, B - 1):
        assert np.array_equal(many_states[:, b], states[:, 0])
        assert np.array_equal(many_inputs[:, b], inputs[:, 0])
    np.testing.assert_allclose(many_weight, weight * (B / 16), rtol=1e-4, atol=1e-4 * B)
