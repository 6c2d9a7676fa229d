"""Zoneout and dropout of weights: against the reference with the same masks, their rates, and their expectation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import FORMS, KINDS, STATES, Problem, check, problems, run, run_reference

pytestmark = [pytest.mark.per_level, pytest.mark.amx]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]), ragged=st.booleans())
def test_noise_agrees_with_the_reference(kind, data, dtype, ragged):
    """With lengths and resets: a state that is kept through an episode's first step is zero."""
    problem = data.draw(problems(kind, noise=True, dtype=dtype))
    check(
        problem, {"state": problem.state, **({"lengths": problem.lengths, "resets": problem.resets} if ragged else {})}
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_in_many_tiles_of_units_and_sequences(kind, dtype):
    zoneout = (0.3, 0.1) if STATES[kind] == 2 else 0.3
    check(Problem(kind, T=30, B=19, I=21, H=45, D=2, dtype=dtype, zoneout=zoneout, weight_dropout=0.2))


@pytest.mark.parametrize("kind", FORMS)
@given(data=st.data(), memory=st.sampled_from(["states", "checkpoint", 3]))
def test_noise_in_every_memory_mode(kind, data, memory):
    problem = data.draw(problems(kind, noise=True))
    options = {"state": problem.state, "lengths": problem.lengths, "masks": problem.masks}
    full, other = (
        problem.layer().forward(problem.x, memory=mode, **options).backward(**problem.loss) for mode in ("full", memory)
    )
    for name in ("input", "parameters", "initial_state", "hidden"):
        assert_close(getattr(other, name), getattr(full, name), problem.bound, name)


def test_inference_takes_the_expectation(kind):
    """Also in the gradient: each old state keeps the same fraction at every step."""
    pair = STATES[kind] == 2
    problem = Problem(kind, L=2, D=2, T=9, zoneout=(0.4, 0.3) if pair else 0.4, weight_dropout=0.5)
    layer = problem.layer()
    found = run(layer, problem.x, {"state": problem.state, "training": False}, loss=problem.loss)
    expectation = Problem(kind, L=2, D=2, T=9, zoneout=problem.zoneout)  # the weights without dropout
    object.__setattr__(expectation, "masks", {})
    expected = run_reference(expectation, {"state": problem.state})
    for name in ("output", "final_state", "input", "parameters", "initial_state", "hidden"):
        assert_close(found[name], expected[name], problem.bound, name)
    assert_same_bits(layer(problem.x, problem.state)[0], found["output"])


def test_masks_are_on_the_tape_at_their_rates(kind):
    """Within six standard deviations of the binomial distribution; different in every forward."""
    zoneout = (0.2, 0.6) if STATES[kind] == 2 else 0.2
    problem = Problem(kind, T=40, B=10, H=16, zoneout=zoneout, weight_dropout=0.3)
    layer = problem.layer()
    first, second = (layer.forward(problem.x).masks for _ in range(2))
    assert set(first) == set(problem.masks)
    rates = {"zoneout_h_l0": 0.2, "zoneout_c_l0": 0.6, "weight_hh_l0": 0.3}
    for name, mask in first.items():
        assert (mask.dtype, mask.shape) == (bool, problem.masks[name].shape)
        assert abs(mask.mean() - rates[name]) < 6 * np.sqrt(rates[name] * (1 - rates[name]) / mask.size)
        assert not np.array_equal(mask, second[name])


def test_masks_of_one_tape_make_another_the_same(kind):
    problem = Problem(kind, L=2, D=2, zoneout=0.3, weight_dropout=0.3, dtype="float32")
    layer = problem.layer(dropout=0.2)
    tape = layer.forward(problem.x)
    again = layer.forward(problem.x, masks=tape.masks)
    assert_same_bits(again.masks, tape.masks)
    assert_same_bits(again.output, tape.output)
    assert_same_bits(again.backward(problem.d_output).parameters, tape.backward(problem.d_output).parameters)


def test_any_number_of_threads_gives_the_same_bits(kind, threads, teams):
    problem = Problem(kind, T=20, B=21, H=70, D=2, dtype="float32", zoneout=0.2, weight_dropout=0.2)
    options = {"masks": problem.masks, "lengths": problem.lengths}
    threads(1)
    one = run(problem.layer(), problem.x, options, loss=problem.loss)
    for team in teams():
        assert_same_bits(run(problem.layer(), problem.x, options, loss=problem.loss), one, team)


def test_certain_zoneout_keeps_the_initial_state(kind):
    """And the gradient of the final state is entirely that of the initial state."""
    problem = Problem(kind, zoneout=1.0)
    tape = problem.layer().forward(problem.x, problem.state)
    grads = tape.backward(d_final_state=problem.d_final_state)
    assert_same_bits(tape.final_state, problem.state)
    assert_same_bits(grads.initial_state, problem.d_final_state)
    assert not grads.input.any()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"zoneout": 1.5}, ValueError, r"zoneout.*\[0, 1\].*1.5"),
        ({"zoneout": (0.1, -1)}, ValueError, r"zoneout\[1\].*-1"),
        ({"zoneout": (0.1, 0.2, 0.3)}, ValueError, r"zoneout.*pair.*0.3"),
        ({"zoneout": "much"}, TypeError, r"zoneout.*'much'"),
        ({"weight_dropout": -0.1}, ValueError, r"weight_dropout.*-0.1"),
    ],
)
def test_wrong_rates(options, error, words):
    with pytest.raises(error, match=words):
        tt.LSTM(3, 4, **options)


def test_a_pair_is_for_cells_with_two_states():
    with pytest.raises(ValueError, match=r"zoneout must be a number for GRU.*\(0.1, 0.2\)"):
        tt.GRU(3, 4, zoneout=(0.1, 0.2))


def test_wrong_masks_name_themselves():
    layer = tt.LSTM(3, 4, zoneout=(0.5, 0), weight_dropout=0.5)
    x = np.zeros((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"masks has unexpected zoneout_c_l0; expected zoneout_h_l0, weight_hh_l0"):
        layer.forward(x, masks={"zoneout_c_l0": np.zeros((5, 2, 4), bool)})
    with pytest.raises(ValueError, match=r"masks\['weight_hh_l0'\] has shape \(16, 3\), expected \(16, 4\)"):
        layer.forward(x, masks={"weight_hh_l0": np.zeros((16, 3), bool)})
    with pytest.raises(TypeError, match=r"masks\['zoneout_h_l0'\] has dtype float64"):
        layer.forward(x, masks={"zoneout_h_l0": np.zeros((5, 2, 4))})
