"""`tt.truncation_error`: closed forms of linear networks, `backward(truncate=k)` of every cell, the smallest k."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import FORMS, Problem

EPS = np.finfo(np.float64).eps


def linear(w, input_size=1, offset=100.0):
    """A relu layer whose units stay near `offset`, and so in the linear range: the Jacobian of every step is w."""
    rnn = tt.RNN(input_size, len(w), nonlinearity="relu", dtype="float64", seed=0)
    rnn.parameters["weight_hh_l0"][:] = w
    rnn.parameters["bias_ih_l0"][:] = offset - w.sum(axis=1) * offset
    rnn.parameters["bias_hh_l0"][:] = 0
    return rnn


def orthogonal(size, gain):
    return gain * np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]


def predicted_bias_error(a, steps, k):
    """Of the bias of h' = a h + b, with a gradient of one on every h_t: by geometric sums.

    The gradient is the sum over steps s and later losses t of a^(t - s). A window of m steps has sum_{d<m} (m - d) a^d
    = (m - a (1 - a^m) / (1 - a)) / (1 - a) of these; pairs in different windows are missing.
    """

    def of_window(m):
        return (m - a * (1 - a**m) / (1 - a)) / (1 - a)

    whole, rest = divmod(steps, k)
    return 1 - (whole * of_window(k) + of_window(rest)) / of_window(steps)


@pytest.mark.parametrize("a", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [60, 101])
def test_a_linear_unit_has_the_error_that_its_jacobian_predicts(a, steps):
    """Within 1 % asked for; the sums are exact, so that only rounding is left: T^2 / 2 terms and a cancellation."""
    rnn, x = linear(np.array([[a]])), np.zeros((steps, 3, 1))
    windows = [1, 2, 7, 20, 50, steps - 1]
    state = np.full((1, 3, 1), 100.0)
    found = tt.truncation_error(rnn, x, windows, state=state)
    expected = np.array([predicted_bias_error(a, steps, k) for k in windows])
    assert np.all(expected > 0)
    np.testing.assert_allclose(found["bias_ih_l0"], expected, rtol=1e-2)
    assert np.max(np.abs(found["bias_ih_l0"] - expected)) <= steps * 10 * EPS
    assert_same_bits(found["bias_hh_l0"], found["bias_ih_l0"])


@pytest.mark.parametrize("k", [1, 3, 8, 13])
def test_a_linear_layer_has_the_error_of_matrix_powers(k):
    """All parameters, from delta_s = sum over t of (w^T)^(t - s) d_t, with t in the window of s or anywhere."""
    size, steps, batch = 5, 20, 2
    w, rng = orthogonal(size, 0.95), np.random.default_rng(1)
    rnn = linear(w, input_size=2)
    x, d = 0.1 * rng.standard_normal((steps, batch, 2)), rng.standard_normal((steps, batch, size))
    state = 100 + 0.1 * rng.standard_normal((1, batch, size))
    before = np.concatenate([state, rnn.forward(x, state).output[:-1]])
    gradients = []
    for window in (steps, k):
        delta = np.zeros_like(d)
        for s in range(steps):
            for t in range(s, min(steps, s // window * window + window)):
                delta[s] += d[t] @ np.linalg.matrix_power(w, t - s)
        weights = [np.einsum("tbi,tbj->ij", delta, array) for array in (x, before)]
        gradients.append([*weights, delta.sum(axis=(0, 1)), delta.sum(axis=(0, 1))])
    expected = [np.linalg.norm(cut - full) / np.linalg.norm(full) for full, cut in zip(*gradients, strict=True)]
    found = tt.truncation_error(rnn, x, k, d, state=state)
    assert list(found) == list(rnn.parameters)
    assert all(type(error) is float for error in found.values())
    # Sums of 400 terms of up to 100, over full gradients of that size or more.
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", FORMS)
def test_is_the_distance_of_what_backward_returns(kind, dtype):
    """Two layers, both directions, lengths, an initial state. Zoneout is its expectation."""
    problem = Problem(kind, L=2, D=2, dtype=dtype, zoneout=0.2)
    own = problem.layer()
    tape = own.forward(problem.x, problem.state, problem.lengths, training=False)
    full, cut = (tape.backward(problem.d_output, truncate=k).parameters for k in (None, 3))
    found = tt.truncation_error(own, problem.x, 3, problem.d_output, state=problem.state, lengths=problem.lengths)
    assert set(found) == set(full)
    for name, gradient in full.items():
        exact = gradient.astype(np.float64)
        expected = np.linalg.norm(cut[name].astype(np.float64) - exact) / np.linalg.norm(exact)
        assert abs(found[name] - expected) <= 100 * EPS * expected
    assert max(found.values()) > 0.01


def test_ones_on_every_output_are_the_default():
    problem = Problem("gru", L=2)
    own = problem.layer()
    ones = np.ones_like(problem.d_output)
    assert tt.truncation_error(own, problem.x, 2) == tt.truncation_error(own, problem.x, 2, ones)


def test_layouts_give_the_same():
    problem = Problem("lstm", B=1)
    h, c = problem.state
    expected = tt.truncation_error(problem.layer(), problem.x, 2, problem.d_output, state=(h, c))
    unbatched = tt.truncation_error(
        problem.layer(), problem.x[:, 0], 2, problem.d_output[:, 0], state=(h[:, 0], c[:, 0])
    )
    first = tt.truncation_error(
        problem.layer(batch_first=True),
        problem.x.swapaxes(0, 1),
        2,
        problem.d_output.swapaxes(0, 1),
        state=(h, c),
    )
    assert unbatched == expected
    assert first == expected


def test_windows_as_long_as_the_sequence_cut_nothing():
    problem = Problem("lstm")
    found = tt.truncation_error(problem.layer(), problem.x, [6, 7, 8, 10**12], state=problem.state)
    for errors in found.values():
        assert errors.shape == (4,)
        assert errors[0] > 0
        assert np.all(errors[1:] == 0)
    assert set(tt.truncation_error(problem.layer(), problem.x[:1], 1).values()) == {0.0}


def test_several_k_are_each_alone():
    problem = Problem("gru", dtype="float32")
    own = problem.layer()
    found = tt.truncation_error(own, problem.x, (5, 1, 2))
    for i, k in enumerate((5, 1, 2)):
        alone = tt.truncation_error(own, problem.x, k)
        assert {name: errors[i] for name, errors in found.items()} == alone


# The smallest k


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.1, 0.5, 10.0])
def test_the_smallest_k_is_that_of_all_errors(tolerance):
    problem = Problem("lstm", T=30, B=2, L=2)
    own, windows = problem.layer(), range(1, 31)
    errors = tt.truncation_error(own, problem.x, windows, problem.d_output)
    found = tt.truncation_error(own, problem.x, windows, problem.d_output, tolerance=tolerance)
    assert found == {name: 1 + int(np.argmax(each <= tolerance)) for name, each in errors.items()}
    backwards = tt.truncation_error(own, problem.x, list(windows)[::-1], problem.d_output, tolerance=tolerance)
    assert backwards == found


def test_the_smallest_k_of_a_linear_unit_is_predicted():
    a, steps, tolerance = 0.9, 200, 0.05
    expected = next(k for k in range(1, steps) if predicted_bias_error(a, steps, k) <= tolerance)
    rnn = linear(np.array([[a]]))
    state = np.full((1, 1, 1), 100.0)
    found = tt.truncation_error(rnn, np.zeros((steps, 1, 1)), range(1, steps), state=state, tolerance=tolerance)
    assert found["bias_ih_l0"] == expected


def test_no_k_is_small_enough():
    rnn = linear(np.array([[0.99]]))
    x = np.zeros((100, 1, 1))
    found = tt.truncation_error(rnn, x, [1, 2], state=np.full((1, 1, 1), 100.0), tolerance=0.01)
    assert found["bias_ih_l0"] == np.inf
    assert found["weight_ih_l0"] == 1  # x is zero, and so are both gradients


# Any range, and what is not finite


def test_gradients_whose_squares_leave_the_range():
    """Gradients scale with d_output, errors do not."""
    problem = Problem("gru")
    own = problem.layer()
    expected = tt.truncation_error(own, problem.x, 2, problem.d_output)
    for scale in (1e-200, 1e200):
        found = tt.truncation_error(own, problem.x, 2, problem.d_output * scale)
        assert_close(np.array(list(found.values())), np.array(list(expected.values())), 1e-10)


def test_what_is_zero_and_what_is_not_finite():
    problem = Problem("gru")
    own = problem.layer()
    zero = tt.truncation_error(own, problem.x, [1, 7], np.zeros_like(problem.d_output))
    assert all(np.array_equal(errors, [0, 0]) for errors in zero.values())
    broken = problem.d_output.copy()
    broken[3] = np.inf
    for errors in tt.truncation_error(own, problem.x, [1, 7], broken).values():
        assert np.isnan(errors).all()
    assert set(tt.truncation_error(own, problem.x, [1, 7], broken, tolerance=1.0).values()) == {np.inf}


def test_a_gradient_that_cancels_in_full_only():
    """h' = -h + x for two steps: the losses of 1 cancel in the sum over the window, -1 + 1; cut apart, each counts."""
    rnn = tt.RNN(1, 1, nonlinearity="relu", bias=False, dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = -1
    rnn.parameters["weight_ih_l0"][:] = 1
    x = np.array([[[1.0]], [[2.0]]])  # h is 1, then 1
    d = np.array([[[-1.0]], [[1.0]]])  # of w_ih: x_1 (d_1 - d_2) + x_2 d_2 = 0; with d_1 alone -1 + 2
    found = tt.truncation_error(rnn, x, 1, d)
    assert found["weight_ih_l0"] == np.inf


def test_monitors_do_not_see_it():
    problem = Problem("lstm", dtype="float32")
    own = problem.layer()
    with tt.FlowMonitor(own, every=1) as monitor:
        tt.truncation_error(own, problem.x, [1, 2])
        assert monitor.history == []


# Errors


X = np.zeros((5, 2, 2))


def layer(**options):
    return tt.GRU(2, 3, dtype="float64", seed=0, **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.truncation_error(tt.Linear(2, 3), X, 1), TypeError, "layer .*Linear"),
        (lambda: tt.truncation_error(tt.Sequential(layer()), X, 1), TypeError, "layer .*Sequential"),
        (lambda: tt.truncation_error(layer(), X[:0], 1), ValueError, "x has no timesteps"),
        (lambda: tt.truncation_error(layer(), X.astype("float32"), 1), TypeError, "x .*float32"),
        (lambda: tt.truncation_error(layer(), X, 0), ValueError, "k must be at least 1, got 0"),
        (lambda: tt.truncation_error(layer(), X, 2.0), TypeError, "k must be an int or a sequence of int, got 2.0"),
        (lambda: tt.truncation_error(layer(), X, None), TypeError, "k must be"),
        (lambda: tt.truncation_error(layer(), X, []), ValueError, "k is empty"),
        (lambda: tt.truncation_error(layer(), X, [1, 0]), ValueError, r"k\[1\] must be at least 1, got 0"),
        (lambda: tt.truncation_error(layer(), X, "12"), TypeError, r"k\[0\] must be an int, got '1'"),
        (lambda: tt.truncation_error(layer(), X, 1, X), ValueError, r"d_output has shape \(5, 2, 2\), .*\(5, 2, 3\)"),
        (lambda: tt.truncation_error(layer(), X, 1, "last"), TypeError, "d_output .*str"),
        (lambda: tt.truncation_error(layer(), X, 1, state=X), ValueError, "state "),
        (lambda: tt.truncation_error(layer(), X, 1, lengths=[5, 6]), ValueError, r"lengths\[1\] is 6"),
        (lambda: tt.truncation_error(layer(), X, 1, tolerance=-0.1), ValueError, "tolerance must be in"),
        (lambda: tt.truncation_error(layer(), X, 1, tolerance="0.1"), TypeError, "tolerance "),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
