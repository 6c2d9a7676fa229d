"""Lyapunov exponents and singular values of Jacobians: known answers, the reference's Jacobians, exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import pytest

import reference
import throughtime as tt
from comparison import assert_close, assert_same_bits, wide
from jacobian_truth import jacobians, own_states, reference_states
from problems import FORMS, Problem
from throughtime.analysis import joint_state, products
from throughtime.analysis.products import log_singular_values, lyapunov_exponents

EPS = np.finfo(np.float64).eps


def bound(problem, matrices):
    """In nats: errors of the Jacobians, and 5 N eps per column in QR (see `products._times`), relative to the smallest
    singular value of a step."""
    return (problem.bound + 5 * len(matrices[0]) * EPS) * max(map(np.linalg.cond, matrices))


def log_svd(matrices):
    """Of the product, multiplied out."""
    product = np.eye(len(matrices[0]))
    for matrix in matrices:
        product = matrix @ product
    return np.log(np.linalg.svd(product, compute_uv=False))


def exact_log_svd(matrices, digits):
    """Of the product, with this many digits; singular values of zero are left out."""
    with mpmath.workdps(digits):
        product = mpmath.eye(len(matrices[0]))
        for matrix in matrices:
            product = mpmath.matrix(matrix.tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        largest = max(values)
        return np.array(
            [float(mpmath.log(value)) for value in values if value > largest * mpmath.mpf(10) ** -digits * 1e9]
        )


def noisy(kind, **sizes):
    return Problem(kind, B=1, zoneout=0.2, **sizes)


# All cells


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("kind", FORMS)
def test_the_mean_exponent_is_that_of_the_determinants(kind, warmup, layers):
    problem = noisy(kind, L=layers)
    matrices = jacobians(problem, reference_states(problem))[:, 0]
    exponents = tt.lyapunov_spectrum(problem.layer(), problem.x, state=problem.state, warmup=warmup)
    expected = np.mean([np.linalg.slogdet(matrix)[1] for matrix in matrices[warmup:]]) / len(matrices[0])
    assert exponents.shape == (len(matrices[0]),)
    assert exponents.dtype == np.float64
    assert np.all(np.diff(exponents) <= 0)
    assert abs(exponents.mean() - expected) <= bound(problem, matrices)


@pytest.mark.parametrize("kind", FORMS)
def test_singular_values_are_those_of_the_product(kind):
    """The plain product has errors of its own: some eps of its largest singular value."""
    problem = noisy(kind, L=2, T=5)
    matrices = jacobians(problem, reference_states(problem))[:, 0]
    for start, stop in ((0, 1), (2, 3), (0, 3), (1, 5)):
        found = tt.jacobian_singular_values(problem.layer(), problem.x, start, stop, state=problem.state)
        expected = log_svd(matrices[start:stop])
        assert found.shape == expected.shape
        allowed = (stop - start) * bound(problem, matrices) + 5 * len(found) * EPS * np.exp(expected[0] - expected)
        assert np.all(np.abs(found - expected) <= allowed)


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm"])
def test_a_float32_layer_is_linearised_at_its_own_states(kind):
    """In float64, but at its own states: those of a float64 layer would give different results."""
    problem = noisy(kind, dtype="float32", L=2)
    layer = problem.layer()
    matrices = jacobians(problem, own_states(problem, layer))[:, 0]
    width = len(matrices[0])
    close = bound(noisy(kind, L=2), matrices)
    ours = tt.lyapunov_spectrum(layer, problem.x, state=problem.state)
    assert np.all(np.abs(ours - lyapunov_exponents(matrices, width)) <= close)
    other = tt.lyapunov_spectrum(layer.astype("float64"), wide(problem.x), state=wide(problem.state))
    assert np.max(np.abs(ours - other)) > close


def test_blocks_of_any_size_give_the_same(monkeypatch):
    """Other block sizes may sum in another order: equal up to rounding."""
    problem = noisy("lstm", T=20)
    whole = tt.lyapunov_spectrum(problem.layer(), problem.x)
    monkeypatch.setattr(joint_state, "_BLOCK_BYTES", 1)
    matrices = jacobians(problem, reference_states(problem))[:, 0]
    assert_close(tt.lyapunov_spectrum(problem.layer(), problem.x), whole, bound(problem, matrices))


# Known spectra


@pytest.mark.parametrize("a", [0.5, 0.9, 1.1])
def test_an_orthogonal_matrix_times_a_gives_ln_a(a):
    """relu units near a fixed point of 100 in all units never reach zero, so the layer is linear. Each logarithm has an
    error of 5 N eps."""
    rng, size = np.random.default_rng(0), 8
    w = a * np.linalg.qr(rng.standard_normal((size, size)))[0]
    rnn = tt.RNN(1, size, nonlinearity="relu", dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = w
    rnn.parameters["bias_ih_l0"][:] = 100 - w.sum(axis=1) * 100
    rnn.parameters["bias_hh_l0"][:] = 0
    x, state = np.zeros((40, 1, 1)), 100 + rng.uniform(-0.5, 0.5, (1, 1, size))
    spectrum = tt.lyapunov_spectrum(rnn, x, state=state)
    values = tt.jacobian_singular_values(rnn, x, 0, 40, state=state)
    assert_close(spectrum, np.full(size, np.log(a)), 5 * size * EPS, floor=1)
    three = np.concatenate([state, state[:, ::-1] - 0.1, state + 0.2], axis=1)
    found = tt.lyapunov_spectrum(rnn, x.repeat(3, 1), state=three, warmup=4, windows=4, every=5, return_spread=True)
    assert_close(found.samples, np.full((3, 4, size), np.log(a)), 5 * size * EPS, floor=1)
    assert_close(values / 40, np.full(size, np.log(a)), 5 * size * EPS, floor=1)


def test_a_constant_jacobian_gives_the_logarithms_of_its_eigenvalues():
    """And k exponents are the largest k. The remaining error of the directions falls by 7/9 per step or faster."""
    rng, rates = np.random.default_rng(0), np.array([0.9, 0.7, 0.5, 0.3])
    basis = np.eye(4) + 0.3 * rng.standard_normal((4, 4))
    w = basis @ np.diag(rates) @ np.linalg.inv(basis)
    rnn = tt.RNN(1, 4, nonlinearity="relu", dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = w
    rnn.parameters["bias_ih_l0"][:] = 1 - w.sum(axis=1)
    rnn.parameters["bias_hh_l0"][:] = 0
    for k in (1, 2, 3, 4, None):
        found = tt.lyapunov_spectrum(rnn, np.zeros((250, 1, 1)), k, state=np.ones((1, 1, 4)), warmup=150)
        assert_close(found, np.log(rates)[:k], 20 * EPS * np.linalg.cond(w) + (7 / 9) ** 150, floor=1)


def test_gaussian_matrices_give_newmans_formula():
    """Exponent i of independent matrices of N(0, sigma^2) is (ln(2 sigma^2) + psi((N - i + 1) / 2)) / 2 (Newman 1986):
    R_ii^2 is sigma^2 chi^2 with N - i + 1 degrees of freedom, independent of everything else, and its logarithm has
    variance psi'((N - i + 1) / 2). The bound is five standard errors, which one of 8 exceeds with probability 5e-6."""
    size, count, sigma = 8, 4000, 0.3
    rng = np.random.default_rng(0)
    found = lyapunov_exponents((sigma * rng.standard_normal((size, size)) for _ in range(count)), size)
    halves = [mpmath.mpf(size - i) / 2 for i in range(size)]
    expected = np.array([float(mpmath.log(2 * sigma**2) + mpmath.digamma(half)) / 2 for half in halves])
    error = np.array([float(mpmath.sqrt(mpmath.psi(1, half) / count)) / 2 for half in halves])
    assert np.all(np.abs(found - expected) <= 5 * error)


def mean_field(g):
    """For h' = tanh(W h), W from N(0, g^2/N), N to infinity: the largest exponent (Molgedey, Schuchhardt and Schuster
    1992), and kappa, N times the variance of |J v|^2 over the square of its mean.

    Pre-activations are Gaussian with variance q = g^2 <tanh^2>. A small v of norm 1 becomes tanh'(a_i) b_i with b_i
    Gaussian of variance g^2/N and independent of a_i, so |J v|^2 is the mean of N numbers (g tanh' b)^2, with b now of
    variance 1. Its mean is g^2 <tanh'^2>, and kappa = 3 <tanh'^4> / <tanh'^2>^2 - 1.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(200)
    weights /= weights.sum()
    q = 1.0
    for _ in range(1000):
        q = g * g * (weights @ np.tanh(np.sqrt(q) * points) ** 2)
    slope = 1 - np.tanh(np.sqrt(q) * points) ** 2
    second, fourth = weights @ slope**2, weights @ slope**4
    return np.log(g * g * second) / 2, 3 * fourth / second**2 - 1


@pytest.mark.parametrize("g", [1.5, 2.0, 3.0])
@pytest.mark.parametrize(("size", "networks"), [(32, 8), (128, 3)])
def test_random_networks_have_the_exponent_of_mean_field_theory(g, size, networks):
    """<ln s> is ln <s> - kappa / 2N for s = |J v|^2, a mean of N numbers, so the exponent is kappa / 4N below its
    limit. W is the same at every step, which adds other terms in 1/N: the bound allows four times this one. The mean
    over steps and networks has a standard error of sqrt(kappa / 4N / steps / networks); the bound allows four of
    these."""
    limit, kappa = mean_field(g)
    steps, found = 200, []
    for seed in range(networks):
        rng = np.random.default_rng(seed)
        rnn = tt.RNN(1, size, bias=False, dtype="float64")
        rnn.parameters["weight_hh_l0"][:] = g / np.sqrt(size) * rng.standard_normal((size, size))
        x, state = np.zeros((100 + steps, 1, 1)), rng.standard_normal((1, 1, size))
        found.append(tt.lyapunov_spectrum(rnn, x, 1, state=state, warmup=100)[0])
    allowed = kappa / size + 4 * np.sqrt(kappa / (4 * size * steps * networks))
    assert abs(np.mean(found) - (limit - kappa / (4 * size))) <= allowed


def test_the_exponent_of_a_large_network_that_engelken_et_al_published():
    """0.3096 for g = 3 and N = 4096, one network. Mean-field theory has 0.3102 for N to infinity, kappa / 4N more, and
    as in the test above four times this is allowed for other terms in 1/N, here of both sizes.
    """
    published, size, steps, networks = 0.3096, 200, 120, 2
    limit, kappa = mean_field(3.0)
    assert abs(published - (limit - kappa / (4 * 4096))) <= kappa / 4096 + 5e-5
    found = []
    for seed in range(networks):
        rng = np.random.default_rng(seed)
        rnn = tt.RNN(1, size, bias=False, dtype="float64")
        rnn.parameters["weight_hh_l0"][:] = 3 / np.sqrt(size) * rng.standard_normal((size, size))
        state = rng.standard_normal((1, 1, size))
        found.append(tt.lyapunov_spectrum(rnn, np.zeros((30 + steps, 1, 1)), 1, state=state, warmup=30)[0])
    expected = published - kappa / 4 * (1 / size - 1 / 4096)
    allowed = kappa * (1 / size + 1 / 4096) + 4 * np.sqrt(kappa / (4 * size * steps * networks))
    assert abs(np.mean(found) - expected) <= allowed


def lorenz(count, steps, dt):
    """Tangent maps (steps, count, 3, 3) of RK4 steps of the Lorenz system, along `count` trajectories, and the states
    (steps + 1, count, 3).
    """
    sigma, rho, beta = 10.0, 28.0, 8 / 3

    def slope(point, tangent):
        x, y, z = point.T
        field = np.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], axis=1)
        matrix = np.zeros((len(point), 3, 3))
        matrix[:, 0, :2] = -sigma, sigma
        matrix[:, 1] = np.stack([rho - z, -np.ones_like(x), -x], axis=1)
        matrix[:, 2] = np.stack([y, x, np.full_like(x, -beta)], axis=1)
        return field, matrix @ tangent

    point, unit = np.random.default_rng(0).standard_normal((count, 3)), np.eye(3)
    point[:, 2] += 25
    maps, points = [], [point]
    for _ in range(steps):
        tangent = np.broadcast_to(unit, (count, 3, 3))
        slopes = [slope(point, tangent)]
        for share in (0.5, 0.5, 1):
            f, df = slopes[-1]
            slopes.append(slope(point + share * dt * f, tangent + share * dt * df))
        point, tangent = (
            start + dt / 6 * (one + 2 * two + 2 * three + four)
            for start, (one, two, three, four) in zip((point, tangent), zip(*slopes, strict=True), strict=True)
        )
        maps.append(tangent)
        points.append(point)
    return np.array(maps), np.array(points)


def test_the_lorenz_system_has_its_three_exponents():
    """0.9056, 0 and -14.5723 per unit of time (Sprott 2003), from supplied Jacobians: exact tangents of RK4 steps.

    The largest: mean over trajectories, each 9 long; 4 standard errors of the mean (24 of them: 3e-4 by Student's t).
    The second belongs to the direction of the flow f, whose growth over a time is that of ln |f|, so that a trajectory
    has (ln |f_T| - ln |f_0|) / T, once the columns have aligned to exp(-13 time). The sum is the divergence, -41/3: RK4
    has its own, off by dt^4 |J|^5 / 120 < 0.03 dt with |J| up to 50.
    """
    dt, count, before, steps = 0.005, 24, 1000, 1800
    maps, points = lorenz(count, before + steps, dt)
    found = np.array([lyapunov_exponents(maps[200:, i], 3, warmup=before - 200, every=20) for i in range(count)]) / dt
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(count)
    assert error[0] < 0.05
    assert abs(mean[0] - 0.9056) <= 4 * error[0]
    assert np.all(np.abs(found.sum(axis=1) + 41 / 3) <= dt**4 * 50**5 / 120)
    assert abs(mean[2] + 14.5723) <= 4 * error[2] + dt**4 * 50**5 / 120
    x, y, z = points[[before, -1]].transpose(2, 0, 1)
    speed = np.log(10**2 * (y - x) ** 2 + (x * (28 - z) - y) ** 2 + (x * y - 8 / 3 * z) ** 2) / 2
    assert np.abs(mean[1] - np.mean(speed[1] - speed[0]) / (steps * dt)) <= 4 * error[1]
    assert abs(mean[1]) < 0.1


def test_columns_do_not_start_in_an_invariant_direction():
    """The largest exponent of a diagonal matrix, whose unit vectors have different exponents; after a warm-up the
    column is off by (5/9)^100."""
    matrices = [np.diag([0.5, 0.9, 0.1])] * 150
    assert_close(lyapunov_exponents(matrices, 1, warmup=100), np.log([0.9]), 15 * EPS + (5 / 9) ** 100, floor=1)


# Arguments that make no difference, or one that is known


@pytest.mark.parametrize("kind", ["gru", "lstm_projected"])
def test_k_exponents_are_among_all(kind):
    """The QR factors of the first columns do not depend on the others."""
    problem = noisy(kind, T=30)
    layer, allowed = problem.layer(), bound(problem, jacobians(problem, reference_states(problem))[:, 0])
    every = tt.lyapunov_spectrum(layer, problem.x, state=problem.state, warmup=10)
    for k in (1, 4, len(every)):
        found = tt.lyapunov_spectrum(layer, problem.x, k, state=problem.state, warmup=10)
        assert found.shape == (k,)
        assert np.all(np.abs(found[:, None] - every).min(axis=1) <= allowed)


def test_layouts_give_the_same():
    problem = noisy("lstm", L=2)
    h, c = problem.state
    layouts = [
        (problem.layer(), problem.x, (h, c)),
        (problem.layer(), problem.x[:, 0], (h[:, 0], c[:, 0])),
        (problem.layer(batch_first=True), problem.x.swapaxes(0, 1), (h, c)),
    ]
    exponents = [tt.lyapunov_spectrum(layer, x, state=state) for layer, x, state in layouts]
    values = [tt.jacobian_singular_values(layer, x, 1, 4, state=state) for layer, x, state in layouts]
    for found in (exponents, values):
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


def test_a_state_of_zeros_is_the_default():
    problem = noisy("gru")
    zeros = np.zeros_like(problem.state)
    layer, x = problem.layer(), problem.x
    assert_same_bits(tt.lyapunov_spectrum(layer, x), tt.lyapunov_spectrum(layer, x, state=zeros))
    assert not np.array_equal(tt.lyapunov_spectrum(layer, x), tt.lyapunov_spectrum(layer, x, state=zeros + 1))


@pytest.mark.parametrize("t", [0, 3, 7])
def test_no_steps_are_the_identity(t):
    problem = Problem("lstm", B=1)
    assert_same_bits(tt.jacobian_singular_values(problem.layer(), problem.x, t, t), np.zeros(12))


def test_dropout_and_zoneout_are_those_of_inference():
    """Zoneout with probability 1 keeps every state: the identity, whatever dropout would do."""
    gru = tt.GRU(2, 3, 2, dropout=0.5, weight_dropout=0.5, zoneout=1.0, dtype="float64", seed=0)
    assert_close(tt.lyapunov_spectrum(gru, np.ones((9, 1, 2))), np.zeros(6), 30 * EPS, floor=1)


# Several sequences, windows, and several Jacobians from one QR decomposition to the next


@pytest.mark.parametrize("kind", FORMS)
def test_several_sequences_are_the_mean_of_single_ones(kind):
    """Rows of the kernels' batches are other in number, and may be summed in another order: rounding."""
    problem = Problem(kind, L=2, B=3, T=6, zoneout=0.2)
    layer = problem.layer()
    found = tt.lyapunov_spectrum(layer, problem.x, state=problem.state, warmup=2, return_spread=True)
    assert found.samples.shape == (3, 1, len(found.exponents))
    matrices = jacobians(problem, reference_states(problem))
    for b in range(3):
        single = lyapunov_exponents(matrices[:, b], len(found.exponents), warmup=2)
        own = np.sort(found.samples[b, 0])[::-1]
        assert np.all(np.abs(own - single) <= bound(problem, matrices[:, b]))
    assert_close(found.samples.mean(axis=(0, 1)), found.exponents, 10 * EPS)
    assert_close(found.samples.std(axis=(0, 1), ddof=1) / np.sqrt(3), found.standard_error, 10 * EPS)
    assert np.all(np.diff(found.exponents) <= 0)
    assert_same_bits(tt.lyapunov_spectrum(layer, problem.x, state=problem.state, warmup=2), found.exponents)


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize(
    ("warmup", "windows", "edges"), [(4, 3, [4, 10, 17, 24]), (10, 2, [10, 17, 24]), (0, 24, range(25))]
)
def test_windows_are_runs_of_their_own_with_the_warmup_before_them(warmup, windows, edges, k):
    """Also where the warm-up of the second begins before the first ends."""
    problem = Problem("gru", T=24, B=2)
    matrices = jacobians(problem, reference_states(problem))
    count = 6 if k is None else k
    found = tt.lyapunov_spectrum(
        problem.layer(), problem.x, k, state=problem.state, warmup=warmup, windows=windows, return_spread=True
    )
    assert found.samples.shape == (2, windows, count)
    for b in range(2):
        for w, (begin, end) in enumerate(pairwise(edges)):
            expected = lyapunov_exponents(matrices[begin - warmup : end, b], count, warmup)
            own = np.sort(found.samples[b, w])[::-1]
            assert np.all(np.abs(own - expected) <= bound(problem, matrices[:, b]))
    assert_close(found.exponents, np.sort(found.samples.mean(axis=(0, 1)))[::-1], 10 * EPS)
    error = found.samples.std(axis=(0, 1), ddof=1) / np.sqrt(2 * windows)
    assert_close(found.standard_error, error, 10 * EPS)


def test_one_sample_has_no_error():
    problem = Problem("gru", B=1)
    found = tt.lyapunov_spectrum(problem.layer(), problem.x, return_spread=True)
    assert np.isnan(found.standard_error).all()
    assert_same_bits(found.exponents, tt.lyapunov_spectrum(problem.layer(), problem.x))


def test_directions_that_die_in_one_sequence():
    """The lower unit is off in the second sequence: minus infinity, without an error bar."""
    rnn = tt.RNN(2, 2, nonlinearity="relu", bias=False, dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = np.diag([0.8, 0.4])
    rnn.parameters["weight_ih_l0"][:] = np.eye(2)
    x = np.ones((60, 2, 2))
    x[:, 1, 1] = -10
    found = tt.lyapunov_spectrum(rnn, x, warmup=40, windows=2, return_spread=True)
    assert abs(found.exponents[0] - np.log(0.8)) <= 10 * EPS + 2.0**-40
    assert found.exponents[1] == -np.inf
    assert found.standard_error[0] <= 10 * EPS + 2.0**-40
    assert np.isnan(found.standard_error[1])


@pytest.mark.parametrize("every", [2, 3, 7, 100])
@pytest.mark.parametrize("kind", FORMS)
def test_fewer_decompositions_give_the_same(kind, every):
    """A group loses up to 1e3 more digits, see `products._times_all`."""
    problem = noisy(kind, T=20, L=2)
    layer = problem.layer()
    matrices = jacobians(problem, reference_states(problem))[:, 0]
    for k in (None, 3):
        whole, found = (
            tt.lyapunov_spectrum(layer, problem.x, k, state=problem.state, warmup=5, every=n) for n in (1, every)
        )
        assert np.all(np.abs(found - whole) <= bound(problem, matrices) + 1e3 * 5 * len(matrices[0]) * EPS)


def test_groups_that_save_decompositions_do_so(monkeypatch):
    """An orthogonal matrix times 0.9: one for each group, and one at the end of the warm-up."""
    matrices = [0.9 * np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]] * 40
    calls = []
    times = products._times_all
    monkeypatch.setattr(products, "_times_all", lambda group, q: calls.append(len(group)) or times(group, q))
    monkeypatch.setattr(products, "_times", None)
    found = lyapunov_exponents(matrices, 5, warmup=12, every=8)
    assert calls == [8, 4, 8, 8, 8, 4]
    assert_close(found, np.full(5, np.log(0.9)), 100 * EPS, floor=1)


@pytest.mark.parametrize("scale", [1.0, 1e40, 1e-40])
def test_groups_that_leave_the_range_are_split(scale):
    """Rates of 1, 1e-5 and 1e-10 a step: after four steps the columns would agree in all digits, and a group of 20
    leaves the range of floats.
    """
    rng = np.random.default_rng(0)
    basis = np.eye(3) + 0.3 * rng.standard_normal((3, 3))
    matrix = scale * basis @ np.diag([1, 1e-5, 1e-10]) @ np.linalg.inv(basis)
    expected = lyapunov_exponents([matrix] * 60, 3, warmup=20)
    assert_close(expected, np.log(scale) + np.log([1, 1e-5, 1e-10]), 1e-4, floor=1)
    for every in (2, 5, 20):
        found = lyapunov_exponents([matrix] * 60, 3, warmup=20, every=every)
        assert np.max(np.abs(found - expected)) <= 1e3 * 15 * EPS * np.linalg.cond(basis) ** 2 + 15 * EPS * 1e10


@pytest.mark.parametrize("every", [2, 5, 50])
def test_directions_die_in_groups_too(every):
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = rng.integers(2, 6)
        matrices = [sparse(rng, size).astype(np.float64) for _ in range(6)]
        alone, grouped = (lyapunov_exponents(matrices, size, every=n) for n in (1, every))
        assert np.array_equal(grouped == -np.inf, alone == -np.inf)
        lives = alone > -np.inf
        assert np.all(np.abs(grouped[lives] - alone[lives]) <= 1e3 * 5 * 6 * size * EPS * 1e4)


# Any range


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("decades", [0, 1, 12])
def test_singular_values_of_long_products_agree_with_exact_arithmetic(size, decades):
    """60 matrices: rows of different size times an orthogonal matrix; singular values up to 1e540. Errors are relative
    to each row, as if all had the same size, for which the condition is 1. Each step rounds a logarithm of its size."""
    rng = np.random.default_rng(0)
    count = 60
    matrices = [
        10.0 ** rng.uniform(0, decades, (size, 1)) * np.linalg.qr(rng.standard_normal((size, size)))[0]
        for _ in range(count)
    ]
    expected = exact_log_svd(matrices, 60 + 2 * decades * count)
    allowed = count * EPS * (5 * size + np.abs(expected).max())
    assert np.max(np.abs(log_singular_values(matrices, size) - expected)) <= allowed


def test_close_singular_values_agree_with_exact_arithmetic():
    """Sixteen within 40 nats, at most 6 from one to the next, so that windows overlap."""
    rng = np.random.default_rng(0)
    matrices = [np.eye(16) + 0.15 * rng.standard_normal((16, 16)) for _ in range(100)]
    expected = exact_log_svd(matrices, 60)
    assert expected[0] - expected[-1] > 40
    assert np.diff(expected).min() > -6
    allowed = 100 * 5 * 16 * EPS * max(map(np.linalg.cond, matrices))
    assert np.max(np.abs(log_singular_values(matrices, 16) - expected)) <= allowed


def test_a_column_that_has_become_small_stays_apart_from_the_larger_ones():
    """The first direction shrinks by 1e-40 before the others mix with it; conditions are at most 10."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    matrices = [np.diag([0.1, 1, 1])] * 40 + [basis @ np.diag([1, 0.5, 0.2])] * 10
    expected = exact_log_svd(matrices, 200)
    allowed = 50 * EPS * (5 * 3 * 10 + np.abs(expected).max())
    assert np.max(np.abs(log_singular_values(matrices, 3) - expected)) <= allowed


def test_what_grows_beyond_the_largest_number_and_below_the_smallest():
    """A relu layer doubles one unit's differences, halves the second unit's and keeps the third's, for 2000 steps."""
    rnn = tt.RNN(1, 3, nonlinearity="relu", dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = np.diag([2.0, 0.5, 1.0])
    rnn.parameters["bias_ih_l0"][:] = [-1, 0.5, 0]
    rnn.parameters["bias_hh_l0"][:] = 0
    state = np.ones((1, 1, 3))  # a fixed point
    found = tt.jacobian_singular_values(rnn, np.zeros((2000, 1, 1)), 0, 2000, state=state)
    assert_close(found, 2000 * np.log([2, 1, 0.5]), 2000 * 15 * EPS, floor=1)


# Directions that die


def rank_of(product):
    """By elimination in fractions."""
    rows, rank = np.vectorize(Fraction, otypes=[object])(product), 0
    for column in range(len(rows)):
        pivots = np.flatnonzero(rows[rank:, column])
        if pivots.size:
            rows[[rank, rank + pivots[0]]] = rows[[rank + pivots[0], rank]]
            rows[rank + 1 :] -= np.outer(rows[rank + 1 :, column] / rows[rank, column], rows[rank])
            rank += 1
    return rank


def sparse(rng, size):
    return rng.integers(-3, 4, (size, size)) * (rng.random((size, size)) < 0.4)


def units_off(rng, size):
    return rng.integers(-3, 4, (size, size)) * (rng.random((size, 1)) < 0.7)


def rank_one(rng, size):
    return np.outer(rng.integers(-9, 10, size), rng.integers(-9, 10, size))


def diagonal(rng, size):
    return np.diag(rng.integers(-2, 3, size))


def graded(rng, size):
    return rng.integers(-3, 4, (size, size)) * 10 ** rng.integers(0, 9, (size, 1))


@pytest.mark.parametrize("make", [sparse, units_off, rank_one, diagonal, graded])
def test_as_many_directions_die_as_the_rank_says(make):
    """Small integers, so that the rank is exact. The other directions agree with 100 digits, for up to 7 matrices of N
    up to 7 with a condition of at most 1e4 (rows scaled to equal size) or infinity: within 7 * 5 N eps * 1e4."""
    rng = np.random.default_rng(0)
    died = 0
    for _ in range(60):
        size, count = rng.integers(1, 8, 2)
        matrices = [make(rng, size) for _ in range(count)]
        product = np.eye(size, dtype=object)
        for matrix in matrices:
            product = matrix.astype(object) @ product
        rank, floats = rank_of(product), [matrix.astype(np.float64) for matrix in matrices]
        exponents, values = lyapunov_exponents(floats, size), log_singular_values(floats, size)
        for found in (exponents, values):
            assert np.all(np.isfinite(found[:rank]))
            assert np.all(found[rank:] == -np.inf)
        if rank:
            expected = exact_log_svd([product], 100)
            assert np.max(np.abs(values[:rank] - expected)) <= 7 * 5 * size * EPS * 1e4
        died += size - rank
    assert died > 0


def test_what_one_step_shrinks_by_much_lives():
    """A factor of 1e-11 in a direction between the units is accurate to 1e11 EPS; one of 1e-18 is lost."""
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.standard_normal((2, 5, 5)))[0]
    for find in (lambda matrix: lyapunov_exponents([matrix], 5), lambda matrix: log_singular_values([matrix], 5)):
        found = find(left @ np.diag([1, 1, 1, 1, 1e-11]) @ right)
        assert abs(found.sum() - np.log(1e-11)) <= 25 * EPS * 1e11
        found = find(left @ np.diag([1, 1, 1, 1, 1e-18]) @ right)
        assert np.all(np.isfinite(found[:4]))
        assert found[4] == -np.inf


def test_units_that_are_off_die_and_the_others_live_on():
    """Two of four relu units are off: the spectrum is that of the others, their triangular matrix's eigenvalues."""
    rnn = tt.RNN(1, 4, nonlinearity="relu", dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = [[0.5, 0.5, 1, 1], [0, 0.25, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    rnn.parameters["bias_ih_l0"][:] = [1, 1, -100, -100]
    rnn.parameters["bias_hh_l0"][:] = 0
    for k in (4, 3, 2, 1):
        found = tt.lyapunov_spectrum(rnn, np.zeros((300, 1, 1)), k, warmup=200)
        assert_close(found[:2], np.log([0.5, 0.25])[:k], 20 * EPS, floor=1)
        assert np.all(found[2:] == -np.inf)


def test_a_direction_that_was_not_followed_takes_the_place_of_a_dead_one():
    """The faster unit goes off after 100 steps: one column had turned to it up to 2^-100, and died with it."""
    rnn = tt.RNN(2, 2, nonlinearity="relu", bias=False, dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = np.diag([0.8, 0.4])
    rnn.parameters["weight_ih_l0"][:] = np.eye(2)
    x = np.ones((200, 1, 2))
    x[100:, :, 0] = -10
    for k in (1, 2):
        found = tt.lyapunov_spectrum(rnn, x, k, warmup=60)
        assert_close(found[:1], np.log([0.4]), 10 * EPS, floor=1)
        assert np.all(found[1:] == -np.inf)


def test_an_lstm_without_recurrent_weights_keeps_its_cells():
    """Without feedback the directions of h die. c shrinks by the forget gate, which depends only on the bias."""
    lstm = tt.LSTM(1, 3, dtype="float64", seed=0)
    forget = np.array([-1.0, 0.0, 2.0])
    for name, array in lstm.parameters.items():
        array[...] = 0
        if name == "bias_ih_l0":
            array[3:6] = forget
    x = np.zeros((100, 1, 1))
    expected = np.sort(np.log(reference.sigmoid(forget)))[::-1]
    found = tt.lyapunov_spectrum(lstm, x, warmup=50)
    assert_close(found[:3], expected, np.exp(50 * np.diff(expected).max()) + 30 * EPS, floor=1)
    assert np.all(found[3:] == -np.inf)
    values = tt.jacobian_singular_values(lstm, x, 10, 100)
    assert np.all(np.isfinite(values[:3]))
    assert np.all(values[3:] == -np.inf)


@pytest.mark.parametrize("layer", [tt.RNN, tt.GRU, tt.LSTM])
def test_with_all_weights_zero(layer):
    """An RNN forgets everything; z = 1/2 of a GRU and f = 1/2 of an LSTM keep half, from the first step on."""
    zero = layer(1, 3, 2, dtype="float64")
    for array in zero.parameters.values():
        array[...] = 0
    found = tt.lyapunov_spectrum(zero, np.zeros((20, 1, 1)), warmup=1)
    alive = 0 if layer is tt.RNN else 6
    assert_close(found[:alive], np.full(alive, np.log(0.5)), 60 * EPS, floor=1)
    assert np.all(found[alive:] == -np.inf)


def test_saturated_units_shrink_differences_as_they_should():
    """Slopes of 1e-9 and less next to slopes of 1, each accurate as a row of its own: the determinants are right. A
    slope of zero (tanh is 1) is a death."""
    rng, size = np.random.default_rng(0), 6
    w = rng.standard_normal((size, size))
    rnn = tt.RNN(1, size, dtype="float64")
    for array in rnn.parameters.values():
        array[...] = 0
    rnn.parameters["weight_hh_l0"][:] = w
    rnn.parameters["bias_ih_l0"][:] = [0, 0, 0, 0, 12, 14]
    x = np.zeros((30, 1, 1))
    h = rnn.forward(x).hidden[0, :, 0]
    slopes = 1 - h * h
    assert slopes.min() < 1e-9
    expected = np.mean(np.log(slopes).sum(axis=1)) + np.linalg.slogdet(w)[1]
    # 1 - h^2 has an absolute error u: the sum of logarithms is as accurate as the smallest slope allows
    allowed = 5 * size * EPS * np.linalg.cond(w) + size * EPS / slopes.min()
    assert abs(tt.lyapunov_spectrum(rnn, x).sum() - expected) <= allowed
    rnn.parameters["bias_ih_l0"][-1] = 50
    found = tt.lyapunov_spectrum(rnn, x)
    assert np.all(np.isfinite(found[:-1]))
    assert found[-1] == -np.inf


# Errors


def layer(**options):
    return tt.LSTM(2, 3, dtype="float64", seed=0, **options)


X = np.zeros((5, 1, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.lyapunov_spectrum(tt.Linear(2, 3), X), TypeError, "layer .*Linear"),
        (lambda: tt.lyapunov_spectrum(layer(bidirectional=True), X), ValueError, "layer .*one direction"),
        (lambda: tt.jacobian_singular_values(layer(), np.zeros((5, 2, 2)), 0, 1), ValueError, "x .*B = 2"),
        (lambda: tt.lyapunov_spectrum(layer(), np.zeros((5, 0, 2))), ValueError, "x .*B = 0"),
        (lambda: tt.lyapunov_spectrum(layer(), np.zeros((0, 1, 2))), ValueError, "x "),
        (lambda: tt.lyapunov_spectrum(layer(), X.astype(np.float32)), TypeError, "x .*float32"),
        (lambda: tt.lyapunov_spectrum(layer(), X[:, :, :1]), ValueError, "x "),
        (lambda: tt.lyapunov_spectrum(layer(), X, 0), ValueError, "k must be at least 1, got 0"),
        (lambda: tt.lyapunov_spectrum(layer(), X, 7), ValueError, "k must be at most 6, got 7"),
        (lambda: tt.lyapunov_spectrum(layer(), X, 2.0), TypeError, "k "),
        (lambda: tt.lyapunov_spectrum(layer(), X, warmup=5), ValueError, "warmup must be at most 4, got 5"),
        (lambda: tt.lyapunov_spectrum(layer(), X, warmup=-1), ValueError, "warmup "),
        (lambda: tt.lyapunov_spectrum(layer(), X, windows=0), ValueError, "windows must be at least 1, got 0"),
        (lambda: tt.lyapunov_spectrum(layer(), X, warmup=2, windows=4), ValueError, "windows must be at most 3, got 4"),
        (lambda: tt.lyapunov_spectrum(layer(), X, every=0), ValueError, "every must be at least 1, got 0"),
        (lambda: tt.lyapunov_spectrum(layer(), X, every=1.5), TypeError, "every "),
        (lambda: tt.lyapunov_spectrum(layer(), X, return_spread=1), TypeError, "return_spread must be True or False"),
        (lambda: tt.lyapunov_spectrum(layer(), X, state=np.zeros((1, 1, 3))), TypeError, "state .*pair"),
        (lambda: tt.jacobian_singular_values(tt.MLP(2, 3), X, 0, 1), TypeError, "layer .*MLP"),
        (lambda: tt.jacobian_singular_values(layer(bidirectional=True), X, 0, 1), ValueError, "layer "),
        (lambda: tt.jacobian_singular_values(layer(), X, 0, 6), ValueError, "stop must be at most 5, got 6"),
        (lambda: tt.jacobian_singular_values(layer(), X, 3, 2), ValueError, "start must be at most 2, got 3"),
        (lambda: tt.jacobian_singular_values(layer(), X, -1, 2), ValueError, "start "),
        (lambda: tt.jacobian_singular_values(layer(), X, 0, 1.5), TypeError, "stop "),
        (lambda: tt.jacobian_singular_values(layer(), X, 0, 1, state=(X[:1], X[:1])), ValueError, "state"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_state_that_is_not_finite_is_named_by_its_step():
    x = X.copy()
    x[3] = np.nan
    with pytest.raises(FloatingPointError, match="state is not finite after 4 steps"):
        tt.lyapunov_spectrum(layer(), x)
    tt.jacobian_singular_values(layer(), x, 0, 3)  # later steps do not matter
    state = (np.full((1, 1, 3), np.inf), np.zeros((1, 1, 3)))
    with pytest.raises(FloatingPointError, match="state is not finite after 0 steps"):
        tt.jacobian_singular_values(layer(), X, 0, 1, state=state)


def test_a_jacobian_that_is_not_finite_is_named_by_its_step():
    """All states are zero, but the derivative of the upper layer's state by the lower layer's is 1e400."""
    rnn = tt.RNN(1, 1, 2, bias=False, dtype="float64")
    rnn.parameters["weight_hh_l0"][:] = rnn.parameters["weight_ih_l1"][:] = 1e200
    with pytest.raises(FloatingPointError, match="after 1 steps by the one before is not finite"):
        tt.lyapunov_spectrum(rnn, np.zeros((3, 1, 1)))


def test_layer_and_input_are_left_alone():
    problem = Problem("lstm", B=1, dtype="float32")  # its arrays are read-only
    own = problem.layer()
    tt.lyapunov_spectrum(own, problem.x, state=problem.state)
    tt.jacobian_singular_values(own, problem.x, 0, 3, state=problem.state)
    assert_same_bits(own.parameters, problem.parameters)
    assert own.dtype == np.float32
