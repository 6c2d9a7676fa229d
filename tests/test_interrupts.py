"""Ctrl-C at any time within a recurrent layer's call: the call stops, and everything remains usable."""

from itertools import count

import pytest

from comparison import assert_same_bits
from emulation import EMULATES_AMX
from problems import Problem
from throughtime import _core

pytestmark = pytest.mark.per_level

ENGINE = "amx" if EMULATES_AMX else ""


def interrupt_every_poll(call, **choices):
    """Stops the call at its first poll, then at its second, and so on; returns its result and the number of polls."""
    for poll in count(1):
        _core.force(engine=ENGINE, **choices, interrupt=poll)
        try:
            return call(), poll - 1
        except KeyboardInterrupt:
            continue


@pytest.mark.amx
@pytest.mark.parametrize("memory", ["full", "states", 2])
@pytest.mark.parametrize("B", [1, 3])
def test_a_call_may_be_stopped_anywhere(kind, B, memory, threads, free):
    """No thread waits for one that has left, and the next call gives the same bits; with a poll before every panel."""
    if EMULATES_AMX and (kind, memory) != ("lstm", "full"):
        pytest.skip("the emulator takes minutes for all of them")
    problem = Problem(kind, T=4, B=B, I=3, H=70, dtype="float32")
    layer = problem.layer()

    def forward():
        return layer.forward(problem.x, problem.state, memory=memory)

    def backward():
        grads = tape.backward(**problem.loss, timesteps=("hidden", "parameter_norms"))
        norms = {f"norms of {name}": found for name, found in grads.parameter_norms.items()}
        return {"input": grads.input, "hidden": grads.hidden, **grads.parameters, **norms}

    for number, split, rest in [(1, "", 0), (2, "units", 0), (2, "units", 1), (3, "sequences", 1)]:
        threads(number)
        choices = {"split": split, "rest": rest, "chunk": 3}
        _core.force(engine=ENGINE, **choices)
        tape = forward()
        expected, gradients = tape.output, backward()
        tape, polls = interrupt_every_poll(forward, polls_often=True, **choices)
        assert polls > problem.T
        assert_same_bits({"output": tape.output}, {"output": expected})
        found, polls = interrupt_every_poll(backward, polls_often=True, **choices)
        assert polls > problem.T
        assert_same_bits(found, gradients)


@pytest.mark.parametrize("B", [1, 8])
def test_a_long_chunk_is_polled_within(B, threads, free):
    """At least every 2^25 multiplications, in steps and in the products of a chunk."""
    threads(1)
    T, H = 400 // B, 256
    problem = Problem("lstm", T=T, B=B, I=H, H=H, dtype="float32")
    layer = problem.layer()
    product = T * B * 4 * H * H
    for memory, forwards, backwards in [("full", 2, 4), ("states", 2, 6), (T, 2, 6)]:
        tape, polls = interrupt_every_poll(lambda m=memory: layer.forward(problem.x, memory=m), chunk=T)
        assert polls >= forwards * product >> 25
        _, polls = interrupt_every_poll(lambda t=tape: t.backward(problem.d_output, timesteps=()), chunk=T)
        assert polls >= backwards * product >> 25


def test_norms_of_a_large_batch_are_polled_within(threads, free):
    """The Gram matrices of one step's gradients take as long as the steps of a chunk."""
    threads(1)
    B, H = 256, 128
    problem = Problem("lstm", T=1, B=B, I=H, H=H, dtype="float32")
    tape = problem.layer().forward(problem.x)
    _, plain = interrupt_every_poll(lambda: tape.backward(problem.d_output, timesteps=()))
    _, polls = interrupt_every_poll(lambda: tape.backward(problem.d_output, timesteps=("parameter_norms",)))
    assert polls > plain
