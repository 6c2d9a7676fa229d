"""`tt.fixed_points`: known fixed points, those of a trained flip-flop, every cell, and what does not converge."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import FORMS, Problem

EPS = np.finfo(np.float64).eps


def zeros_of(layer):
    for array in layer.parameters.values():
        array[...] = 0
    return layer


def bistable(weight=2.0):
    rnn = zeros_of(tt.RNN(1, 1, dtype="float64"))
    rnn.parameters["weight_hh_l0"][:] = weight
    return rnn


def joint(state):
    """(L, n, H), or a pair of them, as (n, N)."""
    arrays = state if isinstance(state, tuple) else (state,)
    return np.concatenate([array.swapaxes(0, 1).reshape(array.shape[1], -1) for array in arrays], axis=1)


# Known answers


def test_a_bistable_tanh_unit():
    """tanh(2 h) = h at 0, where the slope is 2, and at +-0.9575, where it is 2 (1 - h^2) (Newton here, to 1 ulp)."""
    h = 0.9575
    for _ in range(5):
        h -= (np.tanh(2 * h) - h) / (2 * (1 - np.tanh(2 * h) ** 2) - 1)
    found = tt.fixed_points(bistable(), np.zeros(1), np.linspace(-1, 1, 21)[:, None])
    order = np.argsort(found.points[:, 0])
    assert_close(found.points[order, 0], np.array([-h, 0, h]), 10 * EPS)
    assert found.stable[order].tolist() == [True, False, True]
    assert_close(found.eigenvalues[order, 0].real, np.array([2 * (1 - h * h), 2, 2 * (1 - h * h)]), 20 * EPS)
    assert np.all(found.residuals <= 2 * EPS)
    assert np.all(found.index >= 0)
    assert_close(found.points[found.index[[0, 10, 20]], 0], np.array([-h, 0, h]), 10 * EPS)
    assert found.iterations[10] == 0  # it starts there
    assert 1 <= found.iterations.max() <= 10
    assert "3 points, 2 stable, from 21 of 21 starts" in repr(found)
    assert len(found) == 3


def test_the_input_moves_them():
    """With an input of 1 the lower state is gone: tanh(2 h + 1) = h has one solution, near 0.9956."""
    rnn = bistable()
    rnn.parameters["weight_ih_l0"][:] = 1
    found = tt.fixed_points(rnn, np.ones(1), np.linspace(-1, 1, 9)[:, None])
    assert len(found) == 1
    (h,) = found.points[0]
    assert abs(np.tanh(2 * h + 1) - h) <= 2 * EPS
    assert h > 0.99


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_a_linear_layer_takes_one_step(gain):
    """h = w h + b, (1 - w)^-1 b, from wherever all units are on; the eigenvalues are those of w, 20 ulp of cond."""
    size, rng = 6, np.random.default_rng(0)
    w = gain * np.linalg.qr(rng.standard_normal((size, size)))[0]
    rnn = zeros_of(tt.RNN(1, size, nonlinearity="relu", dtype="float64"))
    point = 100 + rng.random(size)
    rnn.parameters["weight_hh_l0"][:] = w
    rnn.parameters["bias_ih_l0"][:] = point - w @ point
    found = tt.fixed_points(rnn, np.zeros(1), point + rng.uniform(-1, 1, (8, size)))
    condition = np.linalg.cond(w - np.eye(size))
    assert_close(found.points, point[None], 50 * EPS * condition)
    assert np.all(found.iterations <= 3)  # the first, and what is left to rounding
    expected = np.linalg.eigvals(w)
    distance = np.abs(found.eigenvalues[0][:, None] - expected)
    assert distance.min(axis=0).max() <= 50 * EPS * gain
    assert found.stable.tolist() == [gain < 1]
    assert_close(np.abs(found.eigenvalues[0]), np.full(size, gain), 50 * EPS)


def test_the_largest_eigenvalue_comes_first():
    rnn = zeros_of(tt.RNN(1, 3, dtype="float64"))
    rnn.parameters["weight_hh_l0"][:] = np.diag([0.1, -0.7, 0.4])
    found = tt.fixed_points(rnn, np.zeros(1), np.full((1, 3), 0.1))
    assert_close(found.eigenvalues, np.array([[-0.7, 0.4, 0.1]], complex), 20 * EPS)


def test_a_line_of_fixed_points():
    """h' = h in one direction: J - 1 is singular, and each start goes to the nearest point of the line."""
    rnn = zeros_of(tt.RNN(1, 2, nonlinearity="relu", dtype="float64"))
    rnn.parameters["weight_hh_l0"][:] = np.diag([1.0, 0.5])
    rnn.parameters["bias_ih_l0"][:] = [0, 1]
    starts = np.array([[1.0, 3.0], [2.0, 1.0], [2.0, 5.0]])
    found = tt.fixed_points(rnn, np.zeros(1), starts)
    assert_close(found.points, np.array([[1.0, 2.0], [2.0, 2.0]]), 20 * EPS)
    assert found.index.tolist() == [0, 1, 1]
    assert not found.stable.any()  # an eigenvalue of 1


@pytest.mark.parametrize("kind", FORMS)
def test_points_of_every_cell_are_fixed(kind):
    """The layer's own step leaves them where they are, with two layers and a non-zero input; small weights have one.
    Zoneout is its expectation.
    """
    problem = Problem(kind, L=2, B=1, T=1, zoneout=0.2)
    layer = problem.layer()
    rng = np.random.default_rng(0)
    x, width = problem.x[0, 0], joint(problem.state).shape[1]
    found = tt.fixed_points(layer, x, rng.uniform(-0.5, 0.5, (5, width)))
    assert len(found) >= 1
    _, after = layer(np.tile(x, (1, len(found), 1)), found.state)
    assert_close(joint(after), found.points, 1e-10)
    assert np.all(found.residuals <= 1e-10 * np.maximum(1, np.linalg.norm(found.points, axis=1)))
    jacobian = tt.jacobians(layer, np.tile(x, (1, len(found), 1)), state=found.state)[0]
    assert_close(found.jacobians, jacobian, problem.bound)


# A trained flip-flop


def test_a_trained_flip_flop_keeps_each_of_its_memories_in_a_stable_point():
    """Two bits, each the sign of the last pulse in its channel (Sussillo and Barak 2013). Between pulses the input is
    zero: four states, in which each output has its sign, are fixed and stable. Without training there is one.
    """
    rng, bits, steps, batch = np.random.default_rng(0), 2, 40, 32
    layer, readout = tt.GRU(bits, 16, seed=0), tt.Linear(16, bits, seed=1)
    model, optimiser = tt.Sequential(layer, readout), tt.optim.Adam(lr=0.02)
    before = tt.fixed_points(layer, np.zeros(bits, np.float32), rng.uniform(-1, 1, (20, 16)).astype(np.float32))
    assert len(before) == 1
    for _ in range(250):
        x = np.sign(rng.standard_normal((steps, batch, bits))) * (rng.random((steps, batch, bits)) < 0.15)
        x[0] = np.sign(rng.standard_normal((batch, bits)))
        target = np.empty_like(x)
        for t in range(steps):
            target[t] = np.where(x[t], x[t], target[t - 1])
        tape = model.forward(x.astype(np.float32))
        loss, d_output = tt.mse(tape.output, target.astype(np.float32))
        optimiser.step(model.parameters, tape.backward(d_output).parameters)
    assert loss < 0.05
    visited = layer.forward(x.astype(np.float32)).output[20:, :8].reshape(-1, 16)
    found = tt.fixed_points(layer, np.zeros(bits, np.float32), visited)
    outputs = readout.forward(found.points[found.stable].astype(np.float32)[None]).output[0]
    assert {tuple(signs) for signs in np.sign(outputs).tolist()} == {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    assert np.all(found.residuals <= 1e-10 * np.maximum(1, np.linalg.norm(found.points, axis=1)))
    # From a little beside a stable point, the layer returns to it.
    state = found.state[:, found.stable] + np.float32(1e-3)
    output, _ = layer(np.zeros((3000, state.shape[1], bits), np.float32), state)
    slowest = np.abs(found.eigenvalues[found.stable, 0]).max()
    assert_close(output[-1], found.points[found.stable].astype(np.float32), 1e-4 + 0.02 * slowest**3000)


# Forms of the arguments


def test_starts_in_the_form_of_the_state():
    problem = Problem("lstm", L=2, B=4, T=1)
    layer, x = problem.layer(), problem.x[0, 0]
    expected = tt.fixed_points(layer, x, joint(problem.state))
    found = tt.fixed_points(layer, x, problem.state)
    assert_same_bits(found.points, expected.points)
    h, c = found.state
    assert h.shape == c.shape == (2, len(found), 6)
    assert_same_bits(joint((h, c)), found.points)
    gru = Problem("gru", L=2, B=4, T=1)
    expected = tt.fixed_points(gru.layer(), gru.x[0, 0], joint(gru.state))
    assert_same_bits(tt.fixed_points(gru.layer(), gru.x[0, 0], gru.state).points, expected.points)


def test_a_float32_layer_is_solved_in_float64():
    problem = Problem("gru", B=3, T=1, dtype="float32")
    layer, x, starts = problem.layer(), problem.x[0, 0], joint(problem.state)
    found = tt.fixed_points(layer, x, starts)
    wide = tt.fixed_points(layer.astype("float64"), x.astype(np.float64), starts.astype(np.float64))
    assert_same_bits(found.points, wide.points)
    assert found.state.dtype == np.float32
    assert np.all(found.residuals < 1e-14)
    assert layer.dtype == np.float32
    assert_same_bits(layer.parameters, problem.parameters)


def test_batch_first_makes_no_difference():
    problem = Problem("lstm", B=3, T=1)
    x, starts = problem.x[0, 0], joint(problem.state)
    found = [tt.fixed_points(problem.layer(batch_first=first), x, starts).points for first in (False, True)]
    assert_same_bits(*found)


def test_groups_of_any_size_give_the_same(monkeypatch):
    from throughtime.analysis import fixed_points

    rnn, starts = bistable(), np.linspace(-1, 1, 9)[:, None]
    whole = tt.fixed_points(rnn, np.zeros(1), starts)
    monkeypatch.setattr(fixed_points, "_GROUP_BYTES", 16)
    found = tt.fixed_points(rnn, np.zeros(1), starts)
    assert_close(found.points, whole.points, 10 * EPS)
    assert found.index.tolist() == whole.index.tolist()


def test_no_starts_give_no_points():
    found = tt.fixed_points(bistable(), np.zeros(1), np.zeros((0, 1)))
    assert (len(found), found.points.shape, found.eigenvalues.shape) == (0, (0, 1), (0, 1))
    assert found.stable.shape == (0,)


# What does not converge


def test_a_layer_without_a_fixed_point_finds_none():
    """h' = h + 1 of a relu unit: J - 1 is zero, and no step reduces the residual of 1."""
    rnn = zeros_of(tt.RNN(1, 1, nonlinearity="relu", dtype="float64"))
    rnn.parameters["weight_hh_l0"][:] = 1
    rnn.parameters["bias_ih_l0"][:] = 1
    found = tt.fixed_points(rnn, np.zeros(1), np.array([[0.5], [3.0]]))
    assert len(found) == 0
    assert found.index.tolist() == [-1, -1]
    assert found.state.shape == (1, 0, 1)


def test_a_narrow_passage_is_no_fixed_point():
    """tanh(h + 0.01) - h has a zero at 0.31, and near h = -0.1 only a minimum of |.|: the start there must not stop
    with a residual of 0.01.
    """
    rnn = bistable(1.0)
    rnn.parameters["bias_ih_l0"][:] = 0.01
    found = tt.fixed_points(rnn, np.zeros(1), np.linspace(-1, 1, 9)[:, None])
    assert len(found) == 1
    (h,) = found.points[0]
    assert abs(np.tanh(h + 0.01) - h) <= EPS
    assert 0.3 < h < 0.32


def test_few_iterations_leave_starts_out():
    found = tt.fixed_points(bistable(), np.zeros(1), np.array([[0.3], [0.95]]), max_iterations=3)
    assert found.index.tolist() == [-1, 0]
    assert np.all(found.iterations <= 3)


def test_states_that_overflow_are_left_out():
    rnn = zeros_of(tt.RNN(1, 1, nonlinearity="relu", dtype="float64"))
    rnn.parameters["weight_hh_l0"][:] = 1e200
    found = tt.fixed_points(rnn, np.zeros(1), np.array([[1e200], [0.5]]))
    assert found.index[0] == -1


# Errors


def lstm(**options):
    return tt.LSTM(2, 3, dtype="float64", seed=0, **options)


X, STARTS = np.zeros(2), np.zeros((4, 6))
H = np.zeros((1, 4, 3))
BROKEN = np.where(np.arange(4)[:, None] == 2, np.inf, STARTS)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.fixed_points(tt.MLP(2, 3), X, STARTS), TypeError, "layer .*MLP"),
        (lambda: tt.fixed_points(lstm(bidirectional=True), X, STARTS), ValueError, "layer .*one direction"),
        (lambda: tt.fixed_points(lstm(), np.zeros(3), STARTS), ValueError, r"x has shape \(3,\), expected \(2,\)"),
        (lambda: tt.fixed_points(lstm(), np.zeros((1, 2)), STARTS), ValueError, "x has shape"),
        (lambda: tt.fixed_points(lstm(), X.astype("float32"), STARTS), TypeError, "x .*float32"),
        (lambda: tt.fixed_points(lstm(), X * np.nan, STARTS), ValueError, "x is not finite"),
        (
            lambda: tt.fixed_points(lstm(), X, STARTS[:, :5]),
            ValueError,
            r"starts has shape \(4, 5\), expected \(n, 6\)",
        ),
        (lambda: tt.fixed_points(lstm(), X, STARTS[0]), ValueError, r"starts .*\(n, 6\), or a pair"),
        (lambda: tt.fixed_points(lstm(), X, H), ValueError, r"starts .*\(n, 6\), or a pair"),
        (lambda: tt.fixed_points(lstm(), X, (H,)), ValueError, "starts must be a pair"),
        (lambda: tt.fixed_points(lstm(), X, (H, H[:, :3])), ValueError, r"starts\[1\] .*\(1, 4, 3\)"),
        (lambda: tt.fixed_points(lstm(), X, ()), TypeError, "starts .*tuple"),
        (lambda: tt.fixed_points(lstm(), X, STARTS.astype("float32")), TypeError, "starts .*float32"),
        (lambda: tt.fixed_points(lstm(), X, BROKEN), ValueError, r"starts\[2\] is not fin"),
        (lambda: tt.fixed_points(lstm(), X, None), TypeError, "starts .*NoneType"),
        (lambda: tt.fixed_points(lstm(), X, STARTS, tolerance=0), ValueError, "tolerance must be in"),
        (lambda: tt.fixed_points(lstm(), X, STARTS, max_iterations=0), ValueError, "max_iterations must be at least 1"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
