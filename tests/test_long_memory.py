"""Gates near 1 and at their limits: a state is kept as long as its gate implies, and rounding does not add up over
time."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from problems import FORMS, GATES, STATES, Problem
from throughtime.recurrent.architecture import gates_of

every_cell = pytest.mark.parametrize("kind", [kind for kind in FORMS if GATES[kind] > 1])
every_size = pytest.mark.parametrize(("dtype", "B"), [("float32", 1), ("float32", 9), ("float64", 1), ("float64", 9)])


def gated(problem, keep, let_in=0):
    """The problem's layer with gates opened and closed by biases: `keep`, and in an LSTM `let_in`."""
    layer = problem.layer()
    if "i" in gates_of(problem.kind):
        layer.parameters["bias_ih_l0"][problem.rows("i")] = let_in
    problem.keep(layer.parameters["bias_ih_l0"], keep)
    return layer


def without_products(problem, keep):
    """A layer that only multiplies its state by sigmoid(keep) at every step."""
    layer = problem.layer()
    for array in layer.parameters.values():
        array[...] = 0
    problem.keep(layer.parameters["bias_ih_l0"], keep)
    return layer


def kept(problem, value):
    """A state whose kept part (h of a GRU, c of an LSTM) is `value`; the rest is zero."""
    full = np.broadcast_to(value, (1, problem.B, problem.H)).astype(problem.dtype)
    return (np.zeros((1, problem.B, problem.width), problem.dtype), full) if STATES[problem.kind] == 2 else full


def part_kept(problem, state):
    return state[1] if STATES[problem.kind] == 2 else state


@every_cell
@every_size
def test_a_gate_near_one_is_the_nearest_number(kind, dtype, B):
    """1 - sigmoid(b) is off by half a unit of the numbers below 1 (rounding), and by three units of sigmoid(-b)."""
    info = np.finfo(dtype)
    biases = np.linspace(2, 1 - np.log(info.epsneg), 300).astype(dtype)
    problem = Problem(kind, T=1, B=B, H=len(biases), dtype=dtype)
    layer = without_products(problem, biases)
    tape = layer.forward(np.zeros((1, B, problem.I), dtype), kept(problem, 1))
    with mpmath.workdps(50):
        small = np.array([float(1 / (1 + mpmath.exp(b))) for b in biases.tolist()])
    error = np.abs((1 - part_kept(problem, tape.final_state).astype(float)) - small)
    assert np.all(error <= info.epsneg / 2 + 3 * np.spacing(small.astype(dtype)))


@every_cell
@every_size
def test_many_steps_with_a_gate_near_one_are_products_with_the_nearest_number(kind, dtype, B):
    """1 - sigmoid(b) is k + 0.2 units of the numbers below 1, so the gate is 1 - k units; forward and backward."""
    unit, k = np.finfo(dtype).epsneg.astype(float), np.arange(2, 33)
    small = (k + 0.2) * unit
    problem = Problem(kind, T=3000, B=B, H=len(k), dtype=dtype)
    layer = without_products(problem, (np.log1p(-small) - np.log(small)).astype(dtype))
    tape = layer.forward(np.zeros((problem.T, B, problem.I), dtype), kept(problem, 1))
    grads = tape.backward(d_final_state=kept(problem, 1))
    expected, gate = np.ones(len(k), dtype), (1 - k * unit).astype(dtype)
    for _ in range(problem.T):
        expected *= gate
    for found in (tape.final_state, grads.initial_state):
        assert np.array_equal(part_kept(problem, found), part_kept(problem, kept(problem, expected)))


@every_cell
@every_size
def test_a_gate_of_one_keeps_the_state_to_the_last_bit(kind, dtype, B):
    problem = Problem(kind, T=300, B=B, H=20, dtype=dtype)
    tape = gated(problem, keep=300, let_in=-3000).forward(problem.x, problem.state)
    states = tape.cell if STATES[kind] == 2 else tape.hidden
    assert np.array_equal(states, np.broadcast_to(part_kept(problem, problem.state)[:, None], states.shape))
    d_kept = part_kept(problem, problem.d_final_state)
    grads = tape.backward(d_final_state=kept(problem, d_kept))
    assert np.array_equal(part_kept(problem, grads.initial_state), d_kept)


@pytest.mark.parametrize("kind", ["gru", "gru_original"])
@every_size
def test_a_gate_of_zero_forgets_the_state(kind, dtype, B):
    problem = Problem(kind, B=B, H=20, dtype=dtype)
    layer = gated(problem, keep=-3000)
    layer.parameters["weight_hh_l0"][...] = 0
    outputs = [layer.forward(problem.x, size * problem.state).output for size in (0, 1, -1e6)]
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])
