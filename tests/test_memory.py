"""The memory modes: gradients equal those of the full tape, and the tape has the expected size."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close
from problems import ALL_TIMESTEPS, GATES, KINDS, STATES, Problem
from reference import NORMALISED
from throughtime import _core

pytestmark = [pytest.mark.per_level, pytest.mark.amx]

MODES = ["states", "checkpoint", 1, 4, 12, 13, 50]  # T is 13


def both(problem, memory, options, **backward):
    """The results of the full tape, and of this one."""
    layer = problem.layer()
    found = []
    for mode in ("full", memory):
        tape = layer.forward(problem.x, problem.state, memory=mode, **options)
        found.append(tape.backward(**problem.loss, timesteps=ALL_TIMESTEPS, **backward))
    return found


def everything(grads):
    states = grads.initial_state if isinstance(grads.initial_state, tuple) else (grads.initial_state,)
    named = {"input": grads.input, "hidden": grads.hidden, "gates": grads.gates, **grads.parameters}
    named |= {f"initial {i}": state for i, state in enumerate(states)}
    return named | {f"norms of {name}": norms for name, norms in grads.parameter_norms.items()}


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B", [1, 3, 40])
def test_gradients_are_those_of_the_full_tape(kind, memory, B):
    """Two layers, both directions, lengths, resets, truncation and clipping, with windows that cut the sequence
    elsewhere. Recomputed values have as many roundings as the first ones: the difference is within twice the bound."""
    problem = Problem(kind, T=13, B=B, L=2, D=2, seed=B)
    clip = 0.2 if "sigmoid" in kind else 1.5  # a sigmoid's slope is at most 1/4
    expected, found = both(
        problem, memory, {"lengths": problem.lengths, "resets": problem.resets}, truncate=5, clip=clip
    )
    assert_close(everything(found), everything(expected), 2 * problem.bound)
    assert np.array_equal(found.clipped, expected.clipped)
    assert found.clipped.any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_a_window_too(kind):
    problem = Problem(kind, T=1, L=2)
    expected, found = both(problem, "checkpoint", {})
    assert_close(everything(found), everything(expected), 2 * problem.bound)


@pytest.mark.parametrize("memory", ["states", "checkpoint", 5, 16, 48])
def test_windows_of_whole_chunks_give_the_same_bits(memory, free):
    """If windows, of at least a chunk each, end at ends of the full tape's chunks, counted from the last step."""
    problem = Problem("lstm", T=80, B=3, I=20, H=24, dtype="float32")
    _core.force(chunk={"checkpoint": 9, 5: 10}.get(memory, 16))
    if memory == "checkpoint":
        problem = Problem("lstm", T=81, B=3, I=20, H=24, dtype="float32")  # a state every 9 steps
    expected, found = map(everything, both(problem, memory, {}))
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


@pytest.mark.parametrize("memory", MODES)
def test_dropout_masks_and_the_last_output(memory):
    problem = Problem("lstm", T=13, L=3)
    layer = problem.layer(dropout=0.5)
    full = layer.forward(problem.x, output="last")
    tape = layer.forward(problem.x, output="last", memory=memory, masks=full.masks)
    assert np.array_equal(tape.output, full.output)
    d_output = np.ones_like(full.output)
    for _ in range(2):
        expected, found = full.backward(d_output), tape.backward(d_output)
        assert_close(found.parameters, expected.parameters, 2 * problem.bound)
        assert_close({"input": found.input}, {"input": expected.input}, 2 * problem.bound)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tape_holds_what_it_says(kind, memory):
    """Exactly the bytes of the stored states, the cell's saved values and the copied parameters."""
    problem = Problem(kind, T=13, B=4, I=5, H=16, L=2)
    tape = problem.layer().forward(problem.x, memory=memory)
    parameters = sum(array.nbytes for array in problem.parameters.values())
    k = {"checkpoint": 4}.get(memory, memory)
    rows = 13 + 2 if k == "states" else -(-13 // min(k, 13)) + 1
    features = problem.width + (STATES[kind] - 1) * problem.H
    assert tape.nbytes == parameters + features * problem.L * rows * problem.B * problem.x.itemsize


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_tape_keeps_the_gates_too(kind):
    problem = Problem(kind, T=13, B=4, I=5, H=16)
    full, states = (problem.layer().forward(problem.x, memory=mode).nbytes for mode in ("full", "states"))
    numbers = math.prod(_core.saved_shape(kind, True, problem.H))  # of one timestep and sequence
    # Values per unit: the gates, and perhaps r_n; the normalised products with x and with h; for an RNN only h.
    least, most = (0, 0) if kind.startswith("rnn") else (GATES[kind], GATES[kind] + 1)
    if kind in NORMALISED:
        least = most = 2 * GATES[kind]
    assert least * problem.H <= numbers <= most * problem.H
    assert full - states == numbers * problem.T * problem.B * problem.x.itemsize


@pytest.mark.parametrize(("memory", "word"), [("checkpoint", "'checkpoint'"), (5, "5")])
def test_states_that_were_not_kept_are_an_error_that_names_the_mode(memory, word):
    tape = tt.LSTM(3, 4, seed=0).forward(np.ones((9, 2, 3), np.float32), memory=memory)
    for name in ("hidden", "cell"):
        with pytest.raises(AttributeError, match=rf"tape.{name} was not kept.*memory={word}.*memory='states'"):
            getattr(tape, name)


def test_states_keeps_the_states():
    problem = Problem("lstm", T=13)
    full, states = (problem.layer().forward(problem.x, problem.state, memory=mode) for mode in ("full", "states"))
    assert np.array_equal(full.hidden, states.hidden)
    assert np.array_equal(full.cell, states.cell)


LONG = """
import numpy as np
import throughtime as tt

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

x = np.zeros((100_000, 1, 8), np.float32)
layer = tt.LSTM(8, 64, seed=0)
def step(x):
    tape = layer.forward(x, output="last", memory="checkpoint")
    return tape.backward(np.ones((1, 64), np.float32), timesteps=())
step(x[:1000])
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = kilobytes("VmRSS")
grads = step(x)
print(kilobytes("VmHWM") - before - grads.input.nbytes // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_long_sequence_needs_little_memory():
    """In addition to the input and its gradient, checkpoints and one window of 317 steps take 0.9 MB, weights and
    scratch of a chunk about 3 MB; all states and gates would take 154 MB."""
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15_000


@pytest.mark.parametrize("memory", ["states", "checkpoint", 4])
def test_backward_only_reads_the_tape(memory, free):
    """Recomputed values are stored elsewhere, even if other kernels round them differently."""
    problem = Problem("lstm", T=20, B=9, I=20, H=24, dtype="float32")
    tape = problem.layer().forward(problem.x, problem.state, memory=memory)
    kept = [array.tobytes() for array in tape.record.states]
    _core.force(engine="one_row", chunk=4)
    first = everything(tape.backward(**problem.loss, timesteps=ALL_TIMESTEPS))
    second = everything(tape.backward(**problem.loss, timesteps=ALL_TIMESTEPS))
    assert kept == [array.tobytes() for array in tape.record.states]
    assert all(np.array_equal(values, second[name]) for name, values in first.items())
