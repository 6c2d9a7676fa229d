"""`tt.jacobians`: the reference's Jacobians for every cell, layouts, sizes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close, assert_same_bits
from jacobian_truth import jacobians, own_states, reference_states
from problems import FORMS, KINDS, Problem
from throughtime.analysis import joint_state


def noisy(kind, **sizes):
    return Problem(kind, **{"T": 5, "B": 2, "zoneout": 0.2, **sizes})


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_are_those_of_the_reference(kind, layers):
    """Entries of a Jacobian are gradients: the bound is theirs. Zoneout is its expectation."""
    problem = noisy(kind, L=layers)
    found = tt.jacobians(problem.layer(), problem.x, state=problem.state)
    assert found.dtype == np.float64
    for ours, expected in zip(found, jacobians(problem, reference_states(problem)), strict=True):
        assert_close(ours, expected, problem.bound)


@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (1, 5, 3), (9, 1, 17), (2, 7, 5)])
@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm"])
def test_of_any_size(kind, T, B, H):
    problem = Problem(kind, T=T, B=B, H=H)
    found = tt.jacobians(problem.layer(), problem.x, state=problem.state)
    assert_close(found, jacobians(problem, reference_states(problem)), problem.bound)


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm_projected"])
def test_a_float32_layer_is_linearised_in_float64_at_its_own_states(kind):
    """The bound is that of float64, and another trajectory would be off by more."""
    problem = noisy(kind, dtype="float32", L=2)
    found = tt.jacobians(problem.layer(), problem.x, state=problem.state)
    assert found.dtype == np.float64
    expected, elsewhere = (
        jacobians(problem, states) for states in (own_states(problem, problem.layer()), reference_states(problem))
    )
    bound = noisy(kind, L=2).bound
    assert_close(found, expected, bound)
    assert np.max(np.abs(found - elsewhere)) > bound * np.max(np.abs(elsewhere))


@pytest.mark.parametrize("B", [1, 4])
def test_blocks_of_any_size_give_the_same(B, monkeypatch):
    """A Jacobian at a time, or three: rows are other in number, and may be summed in another order."""
    problem = noisy("lstm", T=6, B=B, L=2)
    layer = problem.layer()
    whole = tt.jacobians(layer, problem.x, state=problem.state)
    one = joint_state.StepMap(layer)
    for count in (1, 3):
        monkeypatch.setattr(joint_state, "_BLOCK_BYTES", count * one.width * one._row_bytes)
        assert one.at_once == count
        assert_close(tt.jacobians(layer, problem.x, state=problem.state), whole, problem.bound)


@pytest.mark.parametrize("kind", FORMS)
def test_their_product_is_what_backward_returns(kind):
    """d state_T / d state_0 of the product, times a gradient of the final state: that of the initial state."""
    problem = Problem(kind, T=4, B=3, L=2)
    layer = problem.layer()
    steps = tt.jacobians(layer, problem.x, state=problem.state)
    grads = layer.forward(problem.x, problem.state).backward(None, problem.d_final_state)

    def joint(state):
        arrays = state if isinstance(state, tuple) else (state,)
        return np.concatenate([array.swapaxes(0, 1).reshape(problem.B, -1) for array in arrays], axis=1)

    gradient = joint(problem.d_final_state)
    for each in steps[::-1]:
        gradient = np.einsum("bij,bi->bj", each, gradient)
    assert_close(joint(grads.initial_state), gradient, problem.bound)


def test_layouts_give_the_same():
    problem = noisy("lstm", L=2, B=1)
    h, c = problem.state
    whole = tt.jacobians(problem.layer(), problem.x, state=(h, c))
    assert whole.shape == (5, 1, 24, 24)
    unbatched = tt.jacobians(problem.layer(), problem.x[:, 0], state=(h[:, 0], c[:, 0]))
    assert_same_bits(unbatched, whole[:, 0])
    problem = noisy("lstm", L=2, B=3)
    whole = tt.jacobians(problem.layer(), problem.x, state=problem.state)
    first = tt.jacobians(problem.layer(batch_first=True), problem.x.swapaxes(0, 1), state=problem.state)
    assert_same_bits(first, whole)


def test_zeros_are_the_default_state():
    problem = Problem("gru")
    layer, x = problem.layer(), problem.x
    assert_same_bits(tt.jacobians(layer, x), tt.jacobians(layer, x, state=np.zeros_like(problem.state)))
    assert not np.array_equal(tt.jacobians(layer, x), tt.jacobians(layer, x, state=problem.state))


def test_no_sequences_give_an_empty_array():
    problem = Problem("lstm", L=2)
    assert tt.jacobians(problem.layer(), problem.x[:, :0]).shape == (7, 0, 24, 24)


def test_layer_and_input_are_left_alone():
    problem = Problem("lstm", dtype="float32")  # its arrays refuse to be written
    own = problem.layer()
    tt.jacobians(own, problem.x, state=problem.state)
    assert_same_bits(own.parameters, problem.parameters)
    assert own.dtype == np.float32


# Errors


def layer(**options):
    return tt.LSTM(2, 3, dtype="float64", seed=0, **options)


X = np.zeros((5, 2, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.jacobians(tt.Linear(2, 3), X), TypeError, "layer .*Linear"),
        (lambda: tt.jacobians(tt.Sequential(layer()), X), TypeError, "layer .*Sequential"),
        (lambda: tt.jacobians(layer(bidirectional=True), X), ValueError, "layer .*one direction"),
        (lambda: tt.jacobians(layer(reverse=True), X), ValueError, "layer .*forward in time"),
        (lambda: tt.jacobians(layer(), X[:0]), ValueError, "x has no timesteps"),
        (lambda: tt.jacobians(layer(), X.astype(np.float32)), TypeError, "x .*float32"),
        (lambda: tt.jacobians(layer(), X[:, :, :1]), ValueError, "x "),
        (lambda: tt.jacobians(layer(), X, state=np.zeros((1, 2, 3))), TypeError, "state .*pair"),
        (lambda: tt.jacobians(layer(), X, state=(X[:1], X[:1])), ValueError, r"state\[0\] .*\(1, 2, 2\)"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("steps", [2 * 10**7, 10**13])
def test_a_result_beyond_all_memory_is_an_error_before_anything_runs(steps):
    """8 MB a step; the second has more bytes than an integer of 64 bits counts."""
    rnn = tt.RNN(1, 1024, seed=0)
    with pytest.raises(MemoryError, match=rf"\({steps}, 1, 1024, 1024\).*fewer steps"):
        tt.jacobians(rnn, np.broadcast_to(np.float32(0), (steps, 1, 1)))


def test_what_is_not_finite_is_named_by_step_and_sequence():
    x = X.copy()
    x[3, 1] = np.nan
    with pytest.raises(FloatingPointError, match="state is not finite after 4 steps in sequence 1"):
        tt.jacobians(layer(), x)
    rnn = tt.RNN(1, 1, 2, bias=False, dtype="float64")  # its states are zero, but the upper unit's slope is 1e400
    rnn.parameters["weight_hh_l0"][:] = rnn.parameters["weight_ih_l1"][:] = 1e200
    with pytest.raises(FloatingPointError, match="after 1 steps in sequence 0 by the one before is not finite"):
        tt.jacobians(rnn, np.zeros((3, 2, 1)))
