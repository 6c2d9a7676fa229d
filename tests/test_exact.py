"""Exact equality: small integers, whose sums are exact in any order; and the same bits however computed."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pytest

import reference
import throughtime as tt
from comparison import assert_close, assert_same_bits, wide
from problems import KINDS, Problem, run, run_reference
from throughtime import _core

pytestmark = [pytest.mark.per_level, pytest.mark.amx]

USES_AMX = "amx" in _core.bfloat16_terms()

# Small sizes around every register and tile, with different T, B, I and H; then some of many tiles.
SIZES = [
    (1 + (3 * H) % 20, B, 1 + (7 * H + B) % 20, H)
    for H in range(1, 41)
    for B in {(1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 33)[k % 11] for k in (H, 3 * H + 5)}
]
LARGE_SIZES = [(3, 70, 50, 65), (2, 5, 130, 129), (40, 3, 9, 100), (2, 130, 7, 31), (65, 16, 33, 16)]


class Integers(Problem):
    """A relu RNN of small integers. Weights are dropped until no sum of absolute values reaches the integers that
    `dtype` cannot represent."""

    def __init__(self, **sizes):
        super().__init__("rnn_relu", **sizes)
        limit = 2 ** (np.finfo(self.dtype).nmant + 1)
        keep = 1.0
        while self.largest_sum() >= limit:
            keep /= 2
            for name in self.parameters:
                drawn = np.random.default_rng([self.seed, *name.encode()]).random(self.shapes[name])
                self.parameters[name] = np.where(drawn < keep, self.parameters[name], 0).astype(self.dtype)

    def random(self, what, shape):
        rng = np.random.default_rng([self.seed, *what.encode()])
        integers = rng.integers(-2, 3, shape).astype(self.dtype)
        integers.flags.writeable = False
        return integers

    @cached_property
    def parameters(self):
        return {name: self.random(name, shape) for name, shape in self.shapes.items()}

    def largest_sum(self):
        """With absolute values of all numbers, each result bounds all its partial sums."""

        def absolute(values):
            return np.abs(wide(values))

        parameters = {name: absolute(value) for name, value in self.parameters.items()}
        record = reference.forward(self.kind, parameters, absolute(self.x), absolute(self.state))
        grads = reference.backward(record, absolute(self.d_output), absolute(self.d_final_state))
        tensors = (record.hidden, grads.input, grads.gates, grads.hidden, grads.initial_state)
        return max(np.max(tensor) for tensor in (*tensors, *grads.parameters.values()))


class SmallIntegers(Integers):
    """-1, 0 and 1, with no sum of absolute values that reaches the integers that a tensor type cannot represent."""

    def __init__(self, bits, **sizes):
        object.__setattr__(self, "bits", bits)
        super().__init__(dtype="float32", **sizes)

    def random(self, what, shape):
        return np.sign(super().random(what, shape))

    def largest_sum(self):
        return super().largest_sum() * 2.0 ** (24 - self.bits)


def check_equal(problem, options=None, asked=None):
    options = {"state": problem.state} | (options or {})
    ours = run(problem.layer(), problem.x, options, asked, problem.loss)
    expected = run_reference(problem, options, asked)
    for found in (ours, expected):
        del found["parameter_norms"]  # they are not integers
    assert_close(ours, expected, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("part", range(4))
def test_small_integers_are_exact(part, dtype):
    """Compares packing, tiles and tails of all products, forward and backward, by equality."""
    for T, B, I, H in SIZES[part::4]:  # noqa: E741
        check_equal(Integers(T=T, B=B, I=I, H=H, dtype=dtype, seed=H))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "B", "I", "H"), LARGE_SIZES)
def test_larger_integer_problems_are_exact(T, B, I, H, dtype):  # noqa: E741
    check_equal(Integers(T=T, B=B, I=I, H=H, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("H", [3, 8, 17])
def test_integers_through_layers_directions_lengths_and_resets(H, dtype):
    problem = Integers(T=6, B=5, I=4, H=H, L=2, D=2, dtype=dtype)
    check_equal(problem)
    check_equal(problem, {"lengths": problem.lengths})
    check_equal(problem, {"lengths": problem.lengths, "resets": problem.resets}, {"truncate": 2})


# Sizes at which threads divide sequences, at which they do not, and too small for either; odd everywhere.
SHARED = [(30, 33, 17, 24), (12, 2, 40, 150), (7, 1, 3, 5), (5, 70, 9, 65)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "B", "I", "H"), SHARED)
def test_any_number_of_threads_gives_the_same_bits(kind, T, B, I, H, dtype, threads):  # noqa: E741
    """Also more threads than cores."""
    problem = Problem(kind, T=T, B=B, I=I, H=H, L=2, D=2, dtype=dtype)
    layer = problem.layer()
    options = {"state": problem.state, "lengths": problem.lengths}

    def with_threads(n):
        threads(n)
        assert tt.get_num_threads() == n
        return run(layer, problem.x, options, {"clip": 1.0}, problem.loss)

    expected = with_threads(1)
    for n in (2, 3, 5):
        assert_same_bits(with_threads(n), expected, f"{n} threads")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "B", "H"), [(12, 1, 150), (70, 1, 256), (12, 9, 150), (12, 40, 192)])
def test_threads_that_exchange_halves_of_a_sum_give_the_same_bits(kind, T, B, H, dtype, threads, free):
    """Without `clip`, a thread begins a step's sums with its own units while the other finishes the step before."""
    _core.force(engine="amx" if USES_AMX and B > 1 else "", chunk=5)
    problem = Problem(kind, T=T, B=B, I=7, H=H, dtype=dtype)
    layer = problem.layer()

    def with_threads(n):
        threads(n)
        return run(layer, problem.x, {"state": problem.state}, loss=problem.loss)

    expected = with_threads(1)
    for n in (2, 3, 4, 5):
        assert_same_bits(with_threads(n), expected, f"{n} threads")


@pytest.mark.parametrize("split", ["units", "sequences"])
@pytest.mark.parametrize(("T", "B", "H"), [(40, 1, 150), (25, 9, 70), (12, 40, 128)])
@pytest.mark.parametrize("memory", ["full", "checkpoint"])
def test_threads_that_rest_and_return_give_the_same_bits(kind, T, B, H, memory, split, threads, free):
    """A thread rests after every few phases, leaves its work to the others, and returns at the end of a chunk."""
    engine = "amx" if USES_AMX and B > 1 else ""
    problem = Problem(kind, T=T, B=B, I=7, H=H, dtype="float32")
    layer = problem.layer()

    def with_threads(n, rest, clip=None):
        threads(n)
        _core.force(engine=engine, split=split, chunk=7, rest=rest)
        tape = layer.forward(problem.x, state=problem.state, memory=memory)
        grads = tape.backward(**problem.loss, timesteps=("hidden", "gates"), clip=clip)
        return {
            "output": tape.output,
            "input": grads.input,
            "hidden": grads.hidden,
            "gates": grads.gates,
            **grads.parameters,
        }

    expected, clipped = with_threads(1, 0), with_threads(1, 0, clip=1.0)
    for n, rest in [(2, 1), (2, 3), (3, 2), (5, 4)]:
        assert_same_bits(with_threads(n, rest), expected, f"{n} threads, rest after {rest} phases")
    assert_same_bits(with_threads(3, 2, clip=1.0), clipped)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_call_gives_the_same_bits(kind, dtype):
    problem = Problem(kind, T=30, B=33, I=17, H=24, dtype=dtype)
    layer = problem.layer()
    expected = run(layer, problem.x, loss=problem.loss)
    for _ in range(3):
        assert_same_bits(run(layer, problem.x, loss=problem.loss), expected)


def test_calls_from_several_threads_at_once_give_the_same_bits(kind):
    problem = Problem(kind, T=30, B=16, I=17, H=40, dtype="float32")
    layer = problem.layer()
    expected = run(layer, problem.x, loss=problem.loss)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(run, layer, problem.x, loss=problem.loss) for _ in range(12)]
        for call in calls:
            assert_same_bits(call.result(), expected)


FORK = """
import os, warnings
import numpy as np, throughtime as tt
warnings.simplefilter("ignore")  # Python's own, that a process with threads forks
lstm, x = tt.LSTM(8, 64, seed=0), np.ones((20, 32, 8), np.float32)
tt.set_num_threads(2)
before = lstm(x)[0]
child = os.fork()
after = lstm(x)[0]
same = before.tobytes() == after.tobytes()
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_computes_too():
    """Like the workers of data loaders, forked after the first process has started threads."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


def test_the_callers_floating_point_mode_is_left_alone(kind):
    """Subnormal numbers are flushed only inside the kernels."""
    problem = Problem(kind, dtype="float32")
    run(problem.layer(), problem.x, loss=problem.loss)
    assert np.array([1e-40], np.float32)[0] * np.float32(0.5) > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_alone_is_the_sequence_in_a_batch(kind, dtype):
    """Up to rounding: the kernel for one row may sum in a different order than the one for many."""
    problem = Problem(kind, T=20, B=21, I=9, H=20, L=2, D=2, dtype=dtype)
    layer = problem.layer()
    batch = run(layer, problem.x, loss={"d_output": problem.d_output})
    for b in (0, 7, 20):
        one = slice(b, b + 1)
        alone = run(layer, problem.x[:, one], loss={"d_output": problem.d_output[:, one]})
        for name in ("output", "input"):
            assert_close(batch[name][:, one], alone[name], problem.bound, name)
        for name in ("hidden", "gates", "tape.hidden"):
            assert_close(batch[name][:, :, one], alone[name], problem.bound, name)


def test_a_sequence_does_not_see_its_neighbours(kind):
    """To the bit: the same kernel, with different neighbouring rows."""
    problem = Problem(kind, T=12, B=21, H=20, D=2, dtype="float32")
    layer = problem.layer()
    other = problem.x.copy()
    other[:, 1:] = np.nan
    expected = run(layer, problem.x, loss=problem.loss)
    found = run(layer, other, loss=problem.loss)
    for name in ("output", "input"):
        assert_same_bits(found[name][:, 0], expected[name][:, 0], name)
    for name in ("hidden", "gates"):
        assert_same_bits(found[name][:, :, 0], expected[name][:, :, 0], name)
