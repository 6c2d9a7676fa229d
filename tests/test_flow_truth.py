"""The truth about gradient flow is right: against `backward`, products of torch's Jacobians, and a one-line rule."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparison import assert_close
from flow_problems import CHAINS, Chain, Weak
from flow_truth import (
    DIGITS,
    along,
    assert_logs_close,
    errors_left,
    exact,
    gradients,
    jacobians,
    log10_norm,
    norms,
    on_last,
)
from problems import FORMS, Problem, problems, reference_forward
from reference import NORMALISED
from test_reference import PLAIN_KINDS, new_cell, torch_cell

BOUND = 1e-10  # float64 on both sides: rounding errors are 1e-13, and no error in a formula is below this


@pytest.mark.parametrize("kind", FORMS)
@given(data=st.data(), ragged=st.booleans())
def test_along_the_librarys_states_the_gradients_are_its_own(kind, data, ragged):
    """In float64, with both in range."""
    problem = data.draw(problems(kind))
    options = {"state": problem.state} | ({"lengths": problem.lengths} if ragged else {})
    layer = problem.layer()
    expected = layer.forward(problem.x, **options).backward(problem.d_output)
    found = gradients(along(problem, layer, options), problem.d_output)
    assert_close(found.hidden, expected.hidden, BOUND)
    assert_close(found.input, expected.input, BOUND)


def test_numbers_without_a_range_give_the_same(kind):
    """Two layers, both directions, lengths and zoneout; the loss is scaled by 10^-500, the gradients by 10^500."""
    problem = Problem(kind, T=5, H=3, L=2, D=2, zoneout=0.3)
    options = {"state": problem.state, "lengths": problem.lengths}
    record = along(problem, problem.layer(), options)
    expected = gradients(record, problem.d_output).hidden
    found = gradients(record, exact(problem.d_output) * mpmath.mpf(10) ** -500).hidden
    assert found.dtype == object
    assert np.count_nonzero(found) > 0
    assert_close((found * mpmath.mpf(10) ** 500).astype(np.float64), expected, BOUND)
    for name, logs in vars(norms(found)).items():
        assert_logs_close(logs + 500, getattr(norms(expected), name), BOUND, what=name)


def test_the_truth_follows_the_library_where_trajectories_part():
    """With weights so large that rounding changes the states themselves within 200 steps."""
    problem = Problem("rnn_tanh", T=200, H=20, dtype="float32")
    problem.parameters["weight_hh_l0"] *= np.float32(20)
    layer = problem.layer()
    tape = layer.forward(problem.x)
    assert np.abs(reference_forward(problem).hidden - tape.hidden).max() > 0.1
    assert np.array_equal(along(problem, layer).hidden, tape.hidden)


def torch_jacobians(problem, record):
    """d state_t / d state_{t-1} for every step, by automatic differentiation of torch's cell, if it has the cell."""
    torch = pytest.importorskip("torch")
    (direction,) = record.directions
    use = {name: torch.tensor(value) for name, value in vars(direction.parameters).items()}
    cell = (torch_cell if problem.kind in PLAIN_KINDS else new_cell)(torch, problem.kind)
    widths = [s.shape[1] for s in direction.final]

    def of(step):
        part = torch.tensor(step.x) @ use["weight_ih"].T
        if problem.kind in NORMALISED:
            part = torch.layer_norm(part, part.shape[1:], use["weight_ln_ih"])
        part = part + use["bias_ih"]

        def advance(flat):
            return torch.cat([s[0] for s in cell(part, [s[None] for s in flat.split(widths)], use)])

        return torch.func.jacrev(advance)(torch.tensor(np.concatenate(step.previous, axis=1)[0])).numpy()

    return np.stack([of(step) for step in direction.steps])


def product_of(steps, width):
    """(T, N): a loss of ones on the last h, multiplied with one transposed Jacobian after the other."""
    rows = [exact(np.concatenate([np.ones(width), np.zeros(steps.shape[1] - width)]))]
    with mpmath.workdps(DIGITS):
        for step in steps[:0:-1]:
            rows.append(exact(step).T @ rows[-1])
    return np.stack(rows[::-1])


def test_down_to_1e_minus_1000_it_is_the_product_of_torchs_jacobians(kind):
    """At the states of the library's float32 layer."""
    problem = Weak(kind, T=220, B=1, I=2, H=3, dtype="float32")
    record = along(problem, problem.layer(), {"state": problem.state})
    steps = torch_jacobians(problem, record)
    assert_close(jacobians(record), steps, BOUND)
    product = product_of(steps, problem.width)
    found = gradients(record, exact(on_last(problem))).hidden[0, :, 0]
    expected = log10_norm(product[:, : problem.width], 1)
    assert -np.inf < expected[0] < -1000
    assert_logs_close(log10_norm(found, 1), expected, BOUND)
    assert np.all(np.abs(found - product[:, : problem.width]).max(axis=1) <= BOUND * np.abs(found).max(axis=1))


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_chain_is_what_its_rule_says(kind, factor):
    """Beyond 10^-1000 and 10^1000, with a loss on every sequence's last step."""
    problem = Chain(kind, T=1004, B=2, I=1, H=2, factors=(factor,))
    options = {"state": problem.state, "lengths": np.array([1004, 7])}
    record = along(problem, problem.layer(), options)
    d_output = on_last(problem, options["lengths"])
    found = norms(gradients(record, exact(d_output)).hidden)
    assert abs(found.log10_norm_per_sequence[0, 0, 0]) > 1000
    for name, expected in vars(norms(problem.hidden(d_output))).items():
        assert_logs_close(getattr(found, name), expected, BOUND, what=name)


def test_errors_left_are_those_of_perturbed_jacobians(kind):
    """Perturbs every Jacobian by a matrix of random signs, 1e-9 of its own norm; with 200 draws the root of the mean
    square is off by a tenth, not by a half."""
    problem = Weak(kind, T=12, B=1, I=2, H=4)
    record = along(problem, problem.layer(), {"state": problem.state})
    steps, rng, squares = jacobians(record), np.random.default_rng(0), 0
    expected = product_of(steps, problem.width)[:3, : problem.width]
    for _ in range(200):
        signs = rng.choice([-1.0, 1.0], steps.shape) / np.sqrt(steps.shape[1])
        moved = steps + 1e-9 * signs * np.linalg.norm(steps, 2, axis=(1, 2))[:, None, None]
        error = product_of(moved, problem.width)[:3, : problem.width] - expected
        squares += 10 ** (2 * log10_norm(error, 1) - 2 * log10_norm(expected, 1)) / 200
    assert np.sqrt(squares) == pytest.approx(1e-9 * errors_left(record)[:3], rel=0.5)
