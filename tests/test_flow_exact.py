"""`gradient_flow` of recurrent layers: the norms of the reference's gradients, for all options of the layer.

Gradients stay within float64's range here; `test_flow_range.py` leaves it.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import throughtime as tt
from comparison import assert_same_bits
from flow_truth import along, assert_flow_close, assert_logs_close, check_flow, gradients, norms, on_last
from problems import FORMS, Problem, problems
from throughtime import _core

pytestmark = [pytest.mark.per_level, pytest.mark.amx]

NAMES = ("log10_norm", "log10_norm_per_sequence", "log10_unit")
MODES = ["full", "states", "checkpoint", 1, 4, 50]


def arrays(flow):
    return {name: getattr(flow, name) for name in NAMES}


# Against the reference


@pytest.mark.parametrize("kind", FORMS)
@given(
    data=st.data(),
    dtype=st.sampled_from(["float32", "float64"]),
    ragged=st.booleans(),
    initial=st.booleans(),
    last=st.booleans(),
)
def test_it_agrees_with_the_reference(kind, data, dtype, ragged, initial, last):
    problem = data.draw(problems(kind, dtype=dtype))
    options = {"lengths": problem.lengths} if ragged else {}
    options |= {"state": problem.state} if initial else {}
    check_flow(problem, "last" if last else problem.d_output, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "B", "H", "L", "D"), [(40, 33, 20, 2, 2), (25, 5, 65, 1, 2), (90, 1, 40, 2, 1)])
def test_larger_problems_agree_with_the_reference(kind, T, B, H, L, D, dtype):
    """Several tiles and chunks; a loss at the ends, and one at every step."""
    problem = Problem(kind, T=T, B=B, H=H, L=L, D=D, dtype=dtype)
    for d_output in ("last", problem.d_output):
        check_flow(problem, d_output, state=problem.state, lengths=problem.lengths)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_memory_mode_agrees_with_the_reference(kind, memory, dtype):
    problem = Problem(kind, T=13, B=3, L=2, D=2, dtype=dtype)
    check_flow(problem, problem.d_output, memory, windows=2, state=problem.state, lengths=problem.lengths)


@pytest.mark.parametrize("memory", ["full", "states", "checkpoint"])
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_every_length_of_chunk_agrees_with_the_reference(kind, memory, chunk, free):
    _core.force(chunk=chunk)
    problem = Problem(kind, T=21, B=3, L=2, D=2, dtype="float32")
    check_flow(problem, problem.d_output, memory, windows=2, state=problem.state, lengths=problem.lengths)


@pytest.mark.parametrize("kind", FORMS)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]), ragged=st.booleans())
def test_zoneout_and_dropout_are_those_of_inference(kind, data, dtype, ragged):
    """The expectation of zoneout, and no dropout."""
    problem = data.draw(problems(kind, dtype=dtype, noise=True))
    check_flow(problem, problem.d_output, **({"lengths": problem.lengths} if ragged else {}))


def test_dropout_between_layers_is_off(kind):
    problem = Problem(kind, L=2, dtype="float32")
    dropping = problem.layer(dropout=0.9)
    expected = tt.gradient_flow(problem.layer(), problem.x)
    assert_same_bits(arrays(tt.gradient_flow(dropping, problem.x)), arrays(expected))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_of_very_different_size_in_different_sequences(kind, dtype):
    """From 1e-30 to 1e30; layers and directions mix only within a sequence."""
    problem = Problem(kind, T=9, B=7, L=2, D=2, dtype=dtype)
    sizes = 10.0 ** np.linspace(-30, 30, problem.B)
    d_output = (problem.d_output * sizes[:, None]).astype(dtype)
    check_flow(problem, d_output, state=problem.state, lengths=problem.lengths)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("D", [1, 2])
def test_losses_of_very_different_size_at_different_steps(kind, D, dtype):
    """Small ones after large ones, which they do not change, and large after small; none at every third step."""
    problem = Problem(kind, T=12, B=4, D=D, dtype=dtype)
    exponents = np.random.default_rng(5).uniform(-30, 30, (problem.T, problem.B, 1))
    exponents[:, 0] = np.linspace(-30, 30, problem.T)[:, None]
    exponents[:, 1] = np.linspace(30, -30, problem.T)[:, None]
    d_output = (problem.d_output * 10.0**exponents).astype(dtype)
    d_output[::3] = 0
    check_flow(problem, d_output, state=problem.state)


def test_it_is_the_norm_of_the_gradients_that_backward_gives(kind):
    """In float64, in which they are equal except for rounding; a problem's bound applies to both."""
    problem = Problem(kind, T=15, B=4, L=2, D=2)
    options = {"state": problem.state, "lengths": problem.lengths}
    layer = problem.layer()
    for d_output in (on_last(problem, problem.lengths), problem.d_output):
        flow = tt.gradient_flow(layer, problem.x, d_output, **options)
        grads = layer.forward(problem.x, **options).backward(d_output, timesteps=("hidden",))
        assert_flow_close(flow, grads.hidden, 2 * problem.bound, D=2)


# Layouts


def test_batch_first_is_a_layout_of_the_arguments_alone(kind):
    """Of x and d_output, not of the flow."""
    problem = Problem(kind, L=2, D=2, dtype="float32")
    options = {"state": problem.state, "lengths": problem.lengths}
    turned = [array.swapaxes(0, 1) for array in (problem.x, problem.d_output)]
    hidden = gradients(along(problem, problem.layer(), options), problem.d_output.astype(np.float64)).hidden
    for x, d_output in (turned, [np.ascontiguousarray(array) for array in turned]):
        flow = tt.gradient_flow(problem.layer(batch_first=True), x, d_output, **options)
        assert_flow_close(flow, hidden, problem.bound, D=2)


@pytest.mark.parametrize("given_loss", [True, False])
@pytest.mark.parametrize("length", [None, 4, 0])
def test_one_sequence_needs_no_batch_axis(kind, given_loss, length):
    problem = Problem(kind, B=1, L=2, D=2, dtype="float32")
    lengths = None if length is None else [length]
    options = {"state": problem.state, "lengths": lengths}
    d_output = problem.d_output if given_loss else "last"
    expected = arrays(tt.gradient_flow(problem.layer(), problem.x, d_output, **options))
    states = reference.as_state([s[:, 0] for s in reference.as_tuple(problem.state)])
    one = d_output[:, 0] if given_loss else "last"
    found = arrays(tt.gradient_flow(problem.layer(), problem.x[:, 0], one, state=states, lengths=length))
    expected["log10_norm_per_sequence"] = expected["log10_norm_per_sequence"][:, :, 0]
    for name in NAMES:
        assert_logs_close(found[name], expected[name], 2 * problem.bound, np.zeros(expected[name].shape), name)


def test_views_are_as_good_as_arrays():
    problem = Problem("lstm", dtype="float32")
    wide_x, wide_d = (np.repeat(array, 2, axis=1) for array in (problem.x, problem.d_output))
    found = tt.gradient_flow(problem.layer(), wide_x[:, ::2], wide_d[:, ::2])
    assert_same_bits(arrays(found), arrays(tt.gradient_flow(problem.layer(), problem.x, problem.d_output)))


# Steps without gradient


def test_nothing_is_seen_of_the_padding(kind):
    """It may hold NaN, in x and in d_output."""
    problem = Problem(kind, T=9, B=5, L=2, D=2, dtype="float32")
    beyond = (np.arange(problem.T)[:, None] >= problem.lengths)[:, :, None]
    x, d_output = (np.where(beyond, np.nan, array).astype(np.float32) for array in (problem.x, problem.d_output))
    options = {"state": problem.state, "lengths": problem.lengths}
    found = tt.gradient_flow(problem.layer(), x, d_output, **options)
    clean = tt.gradient_flow(problem.layer(), problem.x, problem.d_output, **options)
    assert_same_bits(arrays(found), arrays(clean))
    assert np.array_equal(np.isneginf(found.log10_norm_per_sequence), np.broadcast_to(beyond[:, :, 0], (4, 9, 5)))


def test_a_loss_at_the_first_step_only(kind):
    """Forward it goes nowhere from there; in the reverse direction it reaches every step."""
    problem = Problem(kind, D=2, dtype="float32")
    d_output = np.zeros_like(problem.d_output)
    d_output[0] = problem.d_output[0]
    flow = check_flow(problem, d_output)
    assert np.isfinite(flow.log10_norm_per_sequence[0, 0]).all()
    for name in NAMES:
        assert np.isneginf(getattr(flow, name)[0, 1:]).all()
    assert np.isfinite(flow.log10_norm[1]).all()


def test_no_loss_is_no_gradient(kind):
    problem = Problem(kind, L=2, D=2)
    for options in ({}, {"lengths": np.zeros(problem.B, int)}):
        d_output = "last" if options else np.zeros_like(problem.d_output)
        flow = tt.gradient_flow(problem.layer(), problem.x, d_output, **options)
        for array in arrays(flow).values():
            assert np.isneginf(array).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dead_units_hand_nothing_on(dtype):
    """A relu that is off has slope 0: all units at step 5, some at step 9."""
    problem = Problem("rnn_relu", T=12, B=3, dtype=dtype)
    layer = problem.layer()
    for array in layer.parameters.values():
        array[...] = np.abs(array)
    layer.parameters["weight_ih_l0"][: problem.H // 2, 0] = 0  # these stay on at step 9
    x = np.abs(problem.x)
    x[5], x[9, :, 0] = -1e3, -1e3
    flow = tt.gradient_flow(layer, x)
    hidden = gradients(along(problem, layer, x=x), on_last(problem).astype(np.float64)).hidden
    assert_flow_close(flow, hidden, problem.bound)
    assert np.isneginf(flow.log10_norm[0, :5]).all()
    assert np.isfinite(flow.log10_norm[0, 5:]).all()
    assert np.isfinite(flow.log10_unit[0, 5:]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("memory", ["full", "states", "checkpoint", 3])
def test_one_step(kind, memory, dtype):
    problem = Problem(kind, T=1, L=2, D=2, dtype=dtype)
    check_flow(problem, "last", memory, state=problem.state, lengths=problem.lengths)
    flow = tt.gradient_flow(problem.layer(), problem.x, memory=memory)
    top = norms(on_last(problem).reshape(1, problem.B, 2, problem.width).transpose(2, 0, 1, 3))
    for name in NAMES:
        assert_logs_close(getattr(flow, name)[2:], getattr(top, name), 0, what=name)


@pytest.mark.parametrize("memory", ["full", "checkpoint"])
def test_an_empty_batch_has_empty_sequences_and_no_gradient(kind, memory):
    problem = Problem(kind, B=0, L=2, D=2, dtype="float32")
    for d_output in ("last", problem.d_output):
        flow = tt.gradient_flow(problem.layer(), problem.x, d_output, memory=memory)
        assert flow.log10_norm_per_sequence.shape == (4, problem.T, 0)
        assert_same_bits(flow.log10_norm, np.full((4, problem.T), -np.inf))
        assert_same_bits(flow.log10_unit, np.full((4, problem.T, problem.width), -np.inf))


# Independence of threads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("memory", ["full", "checkpoint"])
@pytest.mark.parametrize(("T", "B", "I", "H"), [(30, 33, 17, 24), (12, 2, 40, 150), (7, 1, 3, 5), (5, 70, 9, 65)])
def test_any_number_of_threads_gives_the_same_bits(kind, memory, T, B, I, H, dtype, threads):  # noqa: E741
    """Also more threads than cores."""
    problem = Problem(kind, T=T, B=B, I=I, H=H, L=2, D=2, dtype=dtype)
    layer = problem.layer()
    options = {"state": problem.state, "lengths": problem.lengths, "memory": memory}
    threads(1)
    expected = arrays(tt.gradient_flow(layer, problem.x, **options))
    for n in (2, 3):
        threads(n)
        assert_same_bits(arrays(tt.gradient_flow(layer, problem.x, **options)), expected, f"{n} threads")


def test_nothing_of_what_it_was_given_changes(kind):
    problem = Problem(kind, L=2, D=2, dtype="float32")
    layer = problem.layer(dropout=0.5)
    given = [problem.x, problem.d_output, *reference.as_tuple(problem.state), *layer.parameters.values()]
    before = [array.tobytes() for array in given]
    first = tt.gradient_flow(layer, problem.x, problem.d_output, state=problem.state)
    assert [array.tobytes() for array in given] == before
    again = tt.gradient_flow(layer, problem.x, problem.d_output, state=problem.state)
    assert_same_bits(arrays(first), arrays(again))


# Each direction's own last step


@pytest.mark.parametrize("ragged", [False, True])
def test_last_is_what_the_final_state_holds(kind, ragged):
    """Ones on h_n of the last layer: in the reverse direction that is timestep 0 of every sequence that has one."""
    problem = Problem(kind, T=9, B=4, L=2, D=2)
    options = {"state": problem.state} | ({"lengths": problem.lengths} if ragged else {})
    tape = problem.layer().forward(problem.x, output="last", **options)
    hidden = tape.backward(np.ones_like(tape.output)).hidden
    flow = tt.gradient_flow(problem.layer(), problem.x, **options)
    assert_flow_close(flow, hidden, problem.bound, problem.D)
    top = flow.log10_norm_per_sequence[3]
    assert np.isfinite(top[0, :-1]).all()
    assert np.isfinite(flow.gamma).all()


def test_last_in_every_layout():
    problem = Problem("gru", T=9, B=4, L=2, D=2, dtype="float32")
    expected = tt.gradient_flow(problem.layer(), problem.x, lengths=problem.lengths)
    turned = tt.gradient_flow(problem.layer(batch_first=True), problem.x.swapaxes(0, 1), lengths=problem.lengths)
    assert_same_bits(arrays(turned), arrays(expected))
    alone = tt.gradient_flow(problem.layer(), problem.x[:, 0], lengths=problem.lengths[0])
    norms = alone.log10_norm[3] - expected.log10_norm_per_sequence[3, :, 0]
    assert np.abs(norms).max() <= 2 * problem.bound  # logarithms: a relative error over ln 10
    assert alone.steps == problem.lengths[0]


@pytest.mark.parametrize("memory", ["full", "states", "checkpoint", 2])
def test_a_batch_padded_beyond_its_longest_sequence(kind, memory):
    """Rows, gamma and horizons equal those of the batch cut to its longest sequence, in all directions and layers."""
    problem = Problem(kind, T=12, B=4, L=2, D=2)
    options = {"lengths": [5, 3, 0, 1], "memory": memory}
    x = problem.x.copy()
    x[5:] = np.nan
    first = np.where(np.arange(12)[:, None, None] == 0, problem.d_output, 0)
    for loss, loss_cut in (("last", "last"), (first, first[:5])):
        flow = tt.gradient_flow(problem.layer(), x, loss, **options)
        cut = tt.gradient_flow(problem.layer(), x[:5], loss_cut, **options)
        assert np.isneginf(flow.log10_norm[:, 5:]).all()
        for name in NAMES:
            assert_logs_close(getattr(flow, name)[:, :5], getattr(cut, name), problem.bound, what=name)
        for fraction in (0.5, 1e-3, 1e-30):
            assert np.array_equal(flow.horizon(fraction), cut.horizon(fraction), equal_nan=True)
        assert np.allclose(flow.gamma, cut.gamma, rtol=5 * problem.bound, atol=0, equal_nan=True)


# A forward that is not finite


def doubling(steps, batch=3, **options):
    """A ReLU network with zero states, except in sequence 1, where they double at every step; and its arguments."""
    layer = tt.RNN(1, 2, nonlinearity="relu", bias=False, **options)
    for name, array in layer.parameters.items():
        array[...] = 2 * np.eye(*array.shape) if name.startswith("weight_hh") else 0
    state = np.zeros((layer.num_layers * layer.num_directions, batch, 2), np.float32)
    return layer, np.zeros((steps, batch, 1), np.float32), state


@pytest.mark.parametrize("memory", ["full", "states", "checkpoint", 7])
@pytest.mark.parametrize("row", range(4))
def test_it_says_where_the_forward_overflows(row, memory):
    """From 1, the 128th doubling leaves float32. The gradient that passes through that step is NaN, and the flow
    reports it; other sequences are unchanged."""
    layer, x, state = doubling(150, num_layers=2, bidirectional=True)
    state[:, 0], state[row, 1] = 1e-10, 1
    flow = tt.gradient_flow(layer, x, state=state, memory=memory)
    reverse = row % 2 == 1
    step = 149 - 127 if reverse else 127
    place = f"timestep {step} of layer {row // 2}{', reverse direction' if reverse else ''}, in sequence 1"
    assert flow.fault == f"hidden overflows at {place}"
    assert place in flow.summary()
    way = flow.log10_norm_per_sequence[row] if reverse else flow.log10_norm_per_sequence[row, ::-1]
    if row >= 2:  # the layer with the loss
        assert np.isfinite(way[0]).any()
        assert np.isnan(way[1:, 1]).all()
    assert not np.isnan(way[:, [0, 2]]).any()


def test_a_loss_before_the_overflow_is_as_without():
    layer, x, state = doubling(150)
    state[0, 1] = 1
    d_output = np.zeros((150, 3, 2), np.float32)
    d_output[100] = 1
    flow = tt.gradient_flow(layer, x, d_output, state=state)
    cut = tt.gradient_flow(layer, x[:120], d_output[:120], state=state)
    assert "timestep 127" in flow.fault
    assert cut.fault is None
    assert_same_bits(flow.log10_norm[:, :120], cut.log10_norm)


def test_an_overflow_reaches_the_layers_below():
    layer, x, state = doubling(150, num_layers=2)
    layer.parameters["weight_ih_l1"][...] = np.eye(2)
    state[0], state[1, 1] = 1e-30, 1
    flow = tt.gradient_flow(layer, x, state=state)
    assert "of layer 1, in sequence 1" in flow.fault
    assert np.isnan(flow.log10_norm_per_sequence[0, :-1, 1]).all()
    assert np.isfinite(flow.log10_norm_per_sequence[0, :, [0, 2]]).all()


def test_padding_does_not_overflow():
    layer, x, state = doubling(150)
    state[0, 1] = 1
    x[127:, 1] = np.nan
    assert tt.gradient_flow(layer, x, state=state, lengths=[150, 127, 150]).fault is None
    assert tt.gradient_flow(layer, x, state=state, lengths=[150, 128, 150]).fault is not None
