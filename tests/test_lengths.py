"""Sequences of different lengths, and several episodes in one sequence: results as if each had run alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import KINDS, STATES, Problem, check, problems, run, run_reference

pytestmark = [pytest.mark.per_level, pytest.mark.amx]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]), episodes=st.booleans())
def test_lengths_and_resets_agree_with_the_reference(kind, data, dtype, episodes):
    problem = data.draw(problems(kind, dtype=dtype))
    options = {"state": problem.state, "lengths": problem.lengths}
    check(problem, options | ({"resets": problem.resets} if episodes else {}))


def beyond(problem, axis=0):
    """Whether (T, B), with extra axes, is padding."""
    padding = np.arange(problem.T)[:, None] >= problem.lengths
    return padding.reshape((1,) * axis + (*padding.shape, 1))


def poisoned(problem):
    """x and the loss, with NaN in the padding."""
    x = np.where(beyond(problem), np.nan, problem.x).astype(problem.dtype)
    loss = dict(problem.loss)
    loss["d_output"] = np.where(beyond(problem), np.nan, loss["d_output"]).astype(problem.dtype)
    if problem.d_cell is not None:
        loss["d_cell"] = np.where(beyond(problem, 1), np.nan, loss["d_cell"]).astype(problem.dtype)
    return x, loss


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(9, 5, 3), (40, 33, 20)])
def test_nan_in_the_padding_is_never_seen(kind, dtype, sizes):
    """In x and in the incoming gradients, with several layers in both directions."""
    T, B, H = sizes
    problem = Problem(kind, T=T, B=B, H=H, L=3, D=2, dtype=dtype)
    x, loss = poisoned(problem)
    options = {"state": problem.state, "lengths": problem.lengths}
    found = run(problem.layer(), x, options, loss=loss)
    assert_close(found, run_reference(problem, options), problem.bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padded_sequences_are_the_sequences_one_by_one(kind, dtype):
    """Each run alone and unpadded has the same outputs, states and gradients, and the parameters' gradients add up."""
    problem = Problem(kind, T=11, B=6, L=2, D=2, dtype=dtype)
    x, loss = poisoned(problem)
    layer = problem.layer()
    found = run(layer, x, {"state": problem.state, "lengths": problem.lengths}, loss=loss)
    total = dict.fromkeys(problem.parameters, 0)
    for b, n in enumerate(problem.lengths):
        if n == 0:
            continue
        state, final = (
            tuple(s[:, b : b + 1] for s in states) if STATES[kind] == 2 else states[:, b : b + 1]
            for states in (problem.state, problem.d_final_state)
        )
        alone_loss = {"d_output": loss["d_output"][:n, b : b + 1], "d_final_state": final}
        if STATES[kind] == 2:
            alone_loss["d_cell"] = loss["d_cell"][:, :n, b : b + 1]
        alone = run(layer, x[:n, b : b + 1], {"state": state}, loss=alone_loss)
        for name in ("output", "input"):
            assert_close(found[name][:n, b : b + 1], alone[name], problem.bound, name)
            assert not found[name][n:, b].any(), name
        for name in ("hidden", "gates", "tape.hidden"):
            assert_close(found[name][:, :n, b : b + 1], alone[name], problem.bound, name)
        for name in ("hidden", "gates"):
            assert not found[name][:, n:, b].any(), name
        for name in ("final_state", "initial_state"):
            pair = found[name] if STATES[kind] == 2 else (found[name],)
            alone_pair = alone[name] if STATES[kind] == 2 else (alone[name],)
            assert_close(tuple(s[:, b : b + 1] for s in pair), alone_pair, problem.bound, name)
        total = {name: total[name] + alone["parameters"][name] for name in total}
    assert_close(found["parameters"], total, problem.bound, "parameters")


def test_a_sequence_of_length_0_passes_state_and_gradient_through(kind):
    problem = Problem(kind, B=4, L=2, D=2, dtype="float32")
    layer = problem.layer()
    for lengths in (problem.lengths, np.zeros(4, int)):
        found = run(layer, problem.x, {"state": problem.state, "lengths": lengths}, {"clip": 0.01}, problem.loss)
        empty = lengths == 0
        pairs = ((found["final_state"], problem.state), (found["initial_state"], problem.d_final_state))
        for ours, expected in pairs:
            for s, e in zip(*((v if STATES[kind] == 2 else (v,)) for v in (ours, expected)), strict=True):
                assert_same_bits(s[:, empty], e[:, empty])
    assert not any(value.any() for value in found["parameters"].values())
    assert not found["output"].any()


@pytest.mark.parametrize("integer", ["int8", "int32", "int64", "uint16"])
def test_any_integers_are_lengths(integer):
    problem = Problem("gru")
    layer = problem.layer()
    expected = layer(problem.x, lengths=problem.lengths)
    assert_same_bits(layer(problem.x, lengths=problem.lengths.astype(integer)), expected)


def test_full_lengths_are_no_lengths(kind):
    problem = Problem(kind, L=2, D=2)
    layer = problem.layer()
    full = run(layer, problem.x, {"lengths": np.full(problem.B, problem.T)}, loss=problem.loss)
    assert_close(full, run(layer, problem.x, loss=problem.loss), problem.bound)


def test_no_resets_are_none(kind):
    problem = Problem(kind, L=2, D=2)
    layer = problem.layer()
    none = run(layer, problem.x, {"resets": np.zeros((problem.T, problem.B), bool)}, loss=problem.loss)
    assert_close(none, run(layer, problem.x, loss=problem.loss), problem.bound)


def test_episodes_are_as_if_run_one_by_one(kind):
    """Each starts from zero in both directions, the first and last from the initial state; no gradient crosses."""
    problem = Problem(kind, T=9, B=2, L=2, D=2)
    starts = [0, 3, 4, 9]
    resets = np.zeros((9, 2), bool)
    resets[[3, 4]] = True
    layer = problem.layer()
    found = run(layer, problem.x, {"resets": resets}, loss={"d_output": problem.d_output})
    total = dict.fromkeys(problem.parameters, 0)
    for start, stop in pairwise(starts):
        part = slice(start, stop)
        alone = run(layer, problem.x[part], loss={"d_output": problem.d_output[part]})
        for name in ("output", "input"):
            assert_close(found[name][part], alone[name], problem.bound, name)
        for name in ("hidden", "gates", "tape.hidden"):
            assert_close(found[name][:, part], alone[name], problem.bound, name)
        total = {name: total[name] + alone["parameters"][name] for name in total}
    assert_close(found["parameters"], total, problem.bound, "parameters")


def test_a_reset_at_the_first_step_forgets_the_initial_state(kind):
    """Only in the forward direction: the reverse direction reaches that step last."""
    problem = Problem(kind, D=2, dtype="float32")
    resets = np.zeros((problem.T, problem.B), bool)
    resets[0] = True
    layer = problem.layer()
    found = run(layer, problem.x, {"state": problem.state, "resets": resets}, loss=problem.loss)
    without = run(layer, problem.x, {"state": problem.state}, loss=problem.loss)
    d_initial = found["initial_state"] if STATES[kind] == 2 else (found["initial_state"],)
    assert not any(d[0].any() for d in d_initial)
    assert all(d[1].any() for d in d_initial)
    assert_same_bits(found["output"][..., problem.width :], without["output"][..., problem.width :])
    assert not np.array_equal(found["output"][..., : problem.width], without["output"][..., : problem.width])


def turned(array, lengths, axis=0):
    """Reverses each sequence within its length; the padding stays."""
    steps = np.arange(array.shape[axis])[:, None]
    index = np.where(steps < lengths, lengths - 1 - steps, steps)
    moved = np.moveaxis(array, axis, 0)
    index = index.reshape(index.shape[:1] + (1,) * axis + index.shape[1:] + (1,) * (moved.ndim - axis - 2))
    return np.moveaxis(np.take_along_axis(moved, index, 0), 0, axis)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_layers": 2, "batch_first": True}])
@pytest.mark.parametrize("memory", ["full", "states", "checkpoint", 2])
@pytest.mark.parametrize("cell", [tt.RNN, tt.GRU, tt.LSTM])
def test_a_layer_that_runs_backward_is_a_forward_one_of_turned_sequences(cell, memory, options):
    make = lambda **more: cell(3, 4, dtype="float64", seed=0, **options, **more)  # noqa: E731
    reverse, forward = make(reverse=True), make()
    assert reverse.parameters.keys() == forward.parameters.keys()
    lengths, rng = np.array([7, 3, 0, 5]), np.random.default_rng(0)
    x, d_output = rng.standard_normal((7, 4, 3)), rng.standard_normal((7, 4, 4))
    h = rng.standard_normal((reverse.num_layers, 4, 4))
    state, one = ((h, h / 2), (h, -h)) if cell is tt.LSTM else (h, h)
    lay = (lambda array: array.swapaxes(0, 1)) if reverse.batch_first else (lambda array: array)
    tapes = [
        layer.forward(lay(array), state, lengths, memory=memory)
        for layer, array in ((reverse, x), (forward, turned(x, lengths)))
    ]
    ours, theirs = (
        tape.backward(lay(d), one, timesteps=("hidden", "gates"))
        for tape, d in zip(tapes, (d_output, turned(d_output, lengths)), strict=True)
    )
    assert_close(lay(tapes[0].output), turned(lay(tapes[1].output), lengths), 1e-13)
    assert_close(tapes[0].final_state, tapes[1].final_state, 1e-13)
    assert_close(lay(ours.input), turned(lay(theirs.input), lengths), 1e-12)
    assert_close(ours.parameters, theirs.parameters, 1e-12)
    assert_close(ours.initial_state, theirs.initial_state, 1e-12)
    for name in ("hidden", "gates"):
        assert_close(getattr(ours, name), turned(getattr(theirs, name), lengths, 1), 1e-12)
    last = reverse.forward(lay(x), state, lengths, output="last", memory=memory)
    assert_close(last.output, tapes[1].final_state[0][-1] if cell is tt.LSTM else tapes[1].final_state[-1], 1e-13)


def test_a_backward_layer_is_the_second_half_of_a_bidirectional_one():
    both, x = (
        tt.LSTM(3, 4, bidirectional=True, dtype="float64", seed=0),
        np.random.default_rng(0).standard_normal((6, 2, 3)),
    )
    alone = tt.LSTM(3, 4, reverse=True, dtype="float64")
    alone.load_parameters(
        {name.removesuffix("_reverse"): a for name, a in both.parameters.items() if "reverse" in name}
    )
    assert_close(alone.forward(x, lengths=[6, 2]).output, both.forward(x, lengths=[6, 2]).output[..., 4:], 1e-14)
    resets = np.zeros((6, 2), bool)
    resets[3] = True
    assert_close(alone.forward(x, resets=resets).output, both.forward(x, resets=resets).output[..., 4:], 1e-14)


def test_a_backward_layer_is_saved_checked_and_measured_as_others(tmp_path):
    layer, x = (
        tt.GRU(3, 4, reverse=True, seed=0),
        np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32),
    )
    assert repr(layer) == "GRU(3, 4, reverse=True)"
    layer.save(tmp_path / "layer")
    assert_same_bits(tt.load(tmp_path / "layer")(x), layer(x))
    assert max(tt.gradcheck(layer, x, lengths=[6, 4], samples=8).values()) <= 1e-7  # as in test_gradcheck.py
    d_output = np.zeros((6, 2, 4), np.float32)
    d_output[0] = 1
    hidden = layer.forward(x, lengths=[6, 4]).backward(d_output).hidden[0, :4].astype(float)
    flow = tt.gradient_flow(layer, x, lengths=[6, 4])
    assert_close(10 ** flow.log10_norm[0, :4], np.linalg.norm(hidden, axis=(1, 2)), 1e-5)
    stack = tt.gradient_flow(tt.Sequential(layer), x, lengths=[6, 4])
    assert_close(10 ** stack.layers[0].log10_norm[0, :4], np.linalg.norm(hidden, axis=(1, 2)), 1e-5)
    with pytest.raises(ValueError, match="reverse is for a layer of one direction"):
        tt.RNN(3, 4, bidirectional=True, reverse=True)
    with pytest.raises(TypeError, match="reverse must be True or False"):
        tt.LSTM(3, 4, reverse=1)
    with pytest.raises(ValueError, match="layer must have one direction, forward in time"):
        tt.lyapunov_spectrum(layer, x[:, :1])
