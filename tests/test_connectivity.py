"""`tt.connectivity`: one backward at a time, known norms far outside the range of floats, and its figure."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from jacobian_truth import jacobians, reference_states
from problems import FORMS, Problem
from throughtime.analysis import connectivity as module

EPS = np.finfo(np.float64).eps


def by_backward(problem, layer, at):
    """Norms (len(at), T), from one backward for each sequence and entry of the output."""
    tape = layer.forward(problem.x, problem.state, training=False)
    squares = np.zeros((len(at), problem.T))
    for i, t in enumerate(at):
        for b in range(problem.B):
            for entry in range(tape.output.shape[2]):
                d = np.zeros_like(tape.output)
                d[t, b, entry] = 1
                squares[i] += (tape.backward(d).input[:, b].astype(np.float64) ** 2).sum(axis=1)
    return np.sqrt(squares / problem.B)


def assert_logarithms_close(found, norms, bound):
    """`norms` are in range; each row's gradients are known to `bound` times the largest of the row."""
    zero = norms == 0
    assert np.array_equal(found == -np.inf, zero)
    allowed = bound * norms.max(axis=1, keepdims=True)
    assert np.all(np.abs(10.0**found - norms) <= allowed)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("kind", FORMS)
def test_is_the_norm_of_one_backward_at_a_time(kind, D, dtype):
    """The whole triangle, or square, of two layers from an initial state. Zoneout is its expectation."""
    problem = Problem(kind, T=5, L=2, D=D, H=4, dtype=dtype, zoneout=0.2)
    layer, at = problem.layer(), range(5)
    found = tt.connectivity(layer, problem.x, at, state=problem.state)
    assert found.dtype == np.float64
    assert_logarithms_close(found, by_backward(problem, layer, at), problem.bound)
    if D == 1:
        assert np.array_equal(found == -np.inf, np.triu(np.ones((5, 5), bool), 1))


@pytest.mark.parametrize("at", [(0,), (6,), (3, 3), (5, 0, 2), np.array([6, 1])])
def test_rows_are_in_the_order_asked_for(at):
    problem = Problem("gru")
    layer = problem.layer()
    whole = tt.connectivity(layer, problem.x, range(7), state=problem.state)
    found = tt.connectivity(layer, problem.x, at, state=problem.state)
    assert found.shape == (len(at), 7)
    assert_logarithms_close(found, 10.0 ** whole[list(at)], problem.bound)


def test_a_reversed_layer_depends_on_what_comes_later():
    problem = Problem("lstm", T=6, B=2)
    layer = problem.layer(reverse=True)
    found = tt.connectivity(layer, problem.x, range(6), state=problem.state)
    assert_logarithms_close(found, by_backward(problem, layer, range(6)), problem.bound)
    assert np.array_equal(found == -np.inf, np.tril(np.ones((6, 6), bool), -1))


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru"])
def test_is_the_norm_of_products_of_jacobians(kind):
    """dh_t/dx_s = J_t ... J_{s+1} dh_s/dx_s: the reference's Jacobians, and the kernels' derivative by x."""
    problem = Problem(kind, T=6, B=2)
    steps = jacobians(problem, reference_states(problem))  # (T, B, N, N)
    layer = problem.layer()
    first = np.zeros((6, 2, 6, 5))
    for s in range(6):
        for entry in range(6):
            d = np.zeros((6, 2, 6))
            d[s, :, entry] = 1
            first[s, :, entry] = layer.forward(problem.x, problem.state).backward(d).input[s]
    norms = np.zeros((6, 6))
    for s in range(6):
        product = first[s]
        for t in range(s, 6):
            norms[t, s] = np.sqrt((product**2).sum() / 2)
            product = steps[t + 1] @ product if t < 5 else product
    assert_logarithms_close(tt.connectivity(layer, problem.x, range(6), state=problem.state), norms, 2 * problem.bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_norms_far_outside_the_range_of_floats(gain, dtype):
    """At h = 0 the slope of tanh is 1, and h' = w h + W x with orthogonal w / gain: ||dh_t/dx_s|| is
    gain^(t - s) ||W||, here up to 2^2999, 1e903.
    """
    size, steps = 3, 3000
    rnn = tt.RNN(2, size, bias=False, dtype=dtype)
    rnn.parameters["weight_hh_l0"][:] = gain * np.roll(np.eye(size), 1, axis=0)
    weight = np.array([[1, 2], [0, 1], [3, 1]])
    rnn.parameters["weight_ih_l0"][:] = weight
    found = tt.connectivity(rnn, np.zeros((steps, 2, 2), dtype), (0, 1000, 2999))
    for row, t in zip(found, (0, 1000, 2999), strict=True):
        expected = (t - np.arange(t + 1)) * np.log10(gain) + np.log10(np.linalg.norm(weight))
        assert np.max(np.abs(row[: t + 1] - expected)) <= 10 * EPS * np.abs(expected).max()
        assert np.all(row[t + 1 :] == -np.inf)


def test_layouts_give_the_same():
    problem = Problem("lstm", L=2, B=1)
    h, c = problem.state
    expected = tt.connectivity(problem.layer(), problem.x, (2, 6), state=(h, c))
    unbatched = tt.connectivity(problem.layer(), problem.x[:, 0], (2, 6), state=(h[:, 0], c[:, 0]))
    assert_same_bits(unbatched, expected)
    problem = Problem("lstm", L=2, D=2)
    expected = tt.connectivity(problem.layer(), problem.x, (2, 6), state=problem.state)
    first = tt.connectivity(problem.layer(batch_first=True), problem.x.swapaxes(0, 1), (2, 6), state=problem.state)
    assert_same_bits(first, expected)


def test_is_the_root_mean_square_of_single_sequences():
    problem = Problem("gru", B=4)
    layer = problem.layer()
    each = [tt.connectivity(layer, problem.x[:, b : b + 1], (5,), state=problem.state[:, b : b + 1]) for b in range(4)]
    norms = np.sqrt(np.mean([(10.0**one) ** 2 for one in each], axis=0))
    assert_logarithms_close(tt.connectivity(layer, problem.x, (5,), state=problem.state), norms, problem.bound)


@pytest.mark.parametrize("rows", [1, 5, 17])
def test_batches_of_any_size_give_the_same(rows, monkeypatch):
    problem = Problem("gru", T=6, D=2)
    layer = problem.layer()
    whole = tt.connectivity(layer, problem.x, (5, 1, 3), state=problem.state)
    step_bytes = layer.dtype.itemsize * 2 * module.step_numbers(layer.architecture)
    monkeypatch.setattr(module, "_BATCH_BYTES", rows * 6 * step_bytes)
    found = tt.connectivity(layer, problem.x, (5, 1, 3), state=problem.state)
    assert_logarithms_close(found, 10.0**whole, problem.bound)


def test_no_timesteps_give_no_rows():
    problem = Problem("gru")
    assert tt.connectivity(problem.layer(), problem.x, ()).shape == (0, 7)


def test_what_is_not_finite_is_nan():
    """An output after the step at which the forward breaks; not one before it, in the same batch."""
    problem = Problem("gru", B=1)
    x = problem.x.copy()
    x[3] = np.nan
    found = tt.connectivity(problem.layer(), x, (2, 5))
    assert np.all(np.isfinite(found[0, :3]))
    assert np.all(np.isnan(found[1, :4]))


def test_layer_and_input_are_left_alone():
    problem = Problem("lstm", dtype="float32")  # its arrays refuse to be written
    own = problem.layer()
    with tt.FlowMonitor(own, every=1) as monitor:
        tt.connectivity(own, problem.x, (3,), state=problem.state)
        assert monitor.history == []
    assert_same_bits(own.parameters, problem.parameters)


# The figure


def triangle(steps=40):
    return tt.connectivity(tt.GRU(2, 4, seed=0), np.zeros((steps, 1, 2), np.float32), range(steps))


def test_the_figure_shows_the_triangle(tmp_path):
    pytest.importorskip("matplotlib")
    values = triangle()
    figure = tt.plot_connectivity(values, range(40), tmp_path / "triangle.png")
    assert (tmp_path / "triangle.png").stat().st_size > 0
    axes, bar = figure.axes
    (image,) = axes.images
    drawn = image.get_array()
    assert np.array_equal(np.ma.getmaskarray(drawn), values == -np.inf)
    assert np.array_equal(drawn.compressed(), values[np.isfinite(values)])
    assert axes.get_xlabel().startswith("timestep s of the input")
    assert axes.get_ylabel().startswith("timestep t of the output")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["exactly zero"]
    figure.draw_without_rendering()
    assert all("10^" in text.get_text() for text in bar.get_yticklabels())


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ((3, 9, 4), ["3", "9", "4"]),
        (range(100, 150), ["100", "110", "120", "130", "140"]),
        (range(0, 150, 3), ["0", "9", "21", "30", "39"]),
    ],
)
def test_rows_are_named_by_their_timesteps(at, names):
    """All of them, round ones of consecutive timesteps, or some evenly spaced ones."""
    pytest.importorskip("matplotlib")
    figure = tt.plot_connectivity(np.zeros((len(at), 200)), at)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][: len(names)] == names


def test_into_axes():
    axes = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    figure = tt.plot_connectivity(triangle(), range(40), axes)
    assert figure is axes.get_figure()
    assert len(axes.images) == 1


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    load = builtins.__import__

    def absent(name, *args, **options):
        if "matplotlib" in name or "connectivity_figure" in (args[2] or ()):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"throughtime\[cli\]"):
        tt.plot_connectivity(np.zeros((1, 3)), (0,))


# Errors


X = np.zeros((5, 2, 2))


def layer(**options):
    return tt.GRU(2, 3, dtype="float64", seed=0, **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.connectivity(tt.Linear(2, 3), X, (0,)), TypeError, "layer .*Linear"),
        (lambda: tt.connectivity(tt.Sequential(layer()), X, (0,)), TypeError, "layer .*Sequential"),
        (lambda: tt.connectivity(layer(), X[:0], (0,)), ValueError, "x has no timesteps"),
        (lambda: tt.connectivity(layer(), X[:, :0], (0,)), ValueError, "x .*B = 0"),
        (lambda: tt.connectivity(layer(), X.astype("float32"), (0,)), TypeError, "x .*float32"),
        (lambda: tt.connectivity(layer(), X, 3), TypeError, "at must be a sequence of timesteps, got 3"),
        (
            lambda: tt.connectivity(layer(), X, np.array(3)),
            TypeError,
            "at must be a sequence of timesteps, got array\\(3\\)",
        ),
        (lambda: tt.connectivity(layer(), X, "3"), TypeError, "at must be a sequence of timesteps, got '3'"),
        (lambda: tt.connectivity(layer(), X, (0, 5)), ValueError, r"at\[1\] must be at most 4, got 5"),
        (lambda: tt.connectivity(layer(), X, (-1,)), ValueError, r"at\[0\] must be at least 0, got -1"),
        (lambda: tt.connectivity(layer(), X, (0.0,)), TypeError, r"at\[0\] must be an int"),
        (lambda: tt.connectivity(layer(), X, (0,), state=X), ValueError, "state "),
        (lambda: tt.plot_connectivity(np.zeros((2, 5)), (0,)), ValueError, r"log10_norm .*\(2, 5\), expected \(1, T\)"),
        (lambda: tt.plot_connectivity(np.zeros(5), (0,)), ValueError, r"log10_norm .*\(5,\)"),
        (lambda: tt.plot_connectivity([[0.0]], (0,)), TypeError, "log10_norm .*list"),
        (lambda: tt.plot_connectivity(np.zeros((1, 5)), 0), TypeError, "at must be a sequence"),
        (lambda: tt.plot_connectivity(np.zeros((1, 5)), (5,)), ValueError, r"at\[0\] must be at most 4"),
        (lambda: tt.plot_connectivity(np.zeros((0, 5)), ()), ValueError, "log10_norm is empty"),
        (lambda: tt.plot_connectivity(np.zeros((1, 5)), (0,), 7), TypeError, "path_or_axes .*int"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
