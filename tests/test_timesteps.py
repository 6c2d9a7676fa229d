"""Results of `backward` per timestep, and its truncation, clipping and search for NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound
from problems import FORMS, KINDS, STATES, Problem, check, problems, run, run_reference
from reference import NORMALISED
from throughtime._arguments import TIMESTEPS


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.data(),
    dtype=st.sampled_from(["float32", "float64"]),
    truncate=st.sampled_from([1, 2, 3, 100]),
    ragged=st.booleans(),
)
def test_truncation_agrees_with_the_reference(kind, data, dtype, truncate, ragged):
    """Windows are counted from each direction's own first step, also if lengths move it."""
    problem = data.draw(problems(kind, dtype=dtype))
    options = {"state": problem.state}
    check(problem, options | ({"lengths": problem.lengths} if ragged else {}), {"truncate": truncate})


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("kind", FORMS)
@given(
    data=st.data(),
    clip=st.sampled_from([1e-3, 0.3, 2.0, 1e6]),
    truncate=st.sampled_from([None, 3]),
    ragged=st.booleans(),
)
def test_clipping_agrees_with_the_reference(kind, data, clip, truncate, ragged):
    """Values and clipped steps agree; in float64 no norm is close enough to the limit to matter."""
    problem = data.draw(problems(kind))
    options = {"state": problem.state}
    ragged_given = {"lengths": problem.lengths, "resets": problem.resets} if ragged else {}
    check(problem, options | ragged_given, {"clip": clip, "truncate": truncate})


@pytest.mark.per_level
@pytest.mark.amx
def test_clipping_in_float32(kind):
    """Only values: a norm within rounding of the limit may be on either side of it."""
    problem = Problem(kind, T=20, B=9, H=20, L=2, D=2, dtype="float32")
    ours = run(problem.layer(), problem.x, asked={"clip": 0.1}, loss=problem.loss)
    expected = run_reference(problem, asked={"clip": 0.1})
    assert expected["clipped"].any()
    for found in (ours, expected):
        del found["clipped"]
    assert_close(ours, expected, problem.bound)


@pytest.mark.per_level
@pytest.mark.amx
def test_a_clip_that_nothing_reaches_changes_nothing(kind):
    problem = Problem(kind, L=2, D=2, dtype="float32")
    layer = problem.layer()
    found = run(layer, problem.x, asked={"clip": 1e6}, loss=problem.loss)
    assert found.pop("clipped").sum() == 0
    assert_close(found, run(layer, problem.x, loss=problem.loss), problem.bound)


@pytest.mark.per_level
@pytest.mark.amx
def test_a_window_of_all_steps_truncates_nothing(kind):
    problem = Problem(kind, L=2, D=2)
    layer = problem.layer()
    whole = run(layer, problem.x, loss=problem.loss)
    assert_close(run(layer, problem.x, asked={"truncate": problem.T}, loss=problem.loss), whole, problem.bound)


@pytest.mark.per_level
@pytest.mark.amx
def test_truncation_is_training_window_by_window(kind):
    """The gradient equals that of a loop over windows that passes only the state on."""
    problem = Problem(kind, T=10, L=1)
    layer = problem.layer()
    tape = layer.forward(problem.x)
    grads = tape.backward(problem.d_output, truncate=4)
    total, state = dict.fromkeys(problem.parameters, 0), None
    for start in (0, 4, 8):
        window = layer.forward(problem.x[start : start + 4], state)
        state = window.final_state
        part = window.backward(problem.d_output[start : start + 4])
        total = {name: total[name] + part.parameters[name] for name in total}
        assert_close(grads.hidden[:, start : start + 4], part.hidden, problem.bound, "hidden")
    assert_close(grads.parameters, total, problem.bound)


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 2, 7, 40])
def test_parameter_norms_are_those_of_materialised_gradients(kind, batch, dtype):
    """Computed from Gram matrices for a small batch, perhaps not for a large one (above G H D / (G H + D))."""
    problem = Problem(kind, T=6, B=batch, L=2, D=2, dtype=dtype)
    options = {"state": problem.state, "lengths": problem.lengths}
    found = run(problem.layer(), problem.x, options, loss=problem.loss)["parameter_norms"]
    expected = run_reference(problem, options)["parameter_norms"]
    assert_close(found, expected, problem.bound)


@pytest.mark.per_level
@pytest.mark.amx
def test_a_parameter_norm_that_cancels_is_zero_and_no_nan():
    """Two sequences that are each other's negative add nothing; the Gram matrices may then sum to below zero."""
    problem = Problem("rnn_tanh", T=4, B=1, bias=False, dtype="float32")
    x = np.concatenate([problem.x, problem.x], axis=1)
    d_output = np.concatenate([problem.d_output, -problem.d_output], axis=1)
    tape = problem.layer().forward(x)
    norms = tape.backward(d_output, timesteps=("parameter_norms",)).parameter_norms
    alone = problem.layer().forward(problem.x)
    largest = alone.backward(problem.d_output, timesteps=("parameter_norms",)).parameter_norms
    for name, norm in norms.items():
        assert np.isfinite(norm).all()
        # the remainder of a difference of squares with relative errors eps
        allowed = np.sqrt(2 * rounding_bound("float64", problem.terms))
        assert (norm <= allowed * largest[name].max()).all()


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize(("dtype", "exponent"), [("float32", -80), ("float64", -600)])
def test_parameter_norms_where_squares_underflow(kind, dtype, exponent):
    """A gradient of 2^-80 (8e-25) in float32, 2^-600 (2e-181) in float64: squared it would be 0."""
    problem = Problem(kind, T=5, L=2, D=2, dtype=dtype)
    tiny = np.asarray(2.0**exponent, dtype)
    loss = {"d_output": problem.d_output * tiny}
    expected = run_reference(problem, loss={"d_output": problem.d_output})["parameter_norms"]
    found = run(problem.layer(), problem.x, loss=loss)["parameter_norms"]
    scaled = {name: norm / 2.0**exponent for name, norm in found.items()}
    assert_close(scaled, expected, problem.bound)


def test_gradients_of_the_steps_add_up_to_the_gradient(kind):
    """Those of the first layer, from `gates` and the inputs of each step."""
    problem = Problem(kind, T=9, B=4, D=2)
    found = run(problem.layer(), problem.x, {"state": problem.state}, loss=problem.loss)
    h_0 = problem.state[0] if STATES[kind] == 2 else problem.state
    for d, suffix in enumerate(("_l0", "_l0_reverse")):
        gates, h = found["gates"][d], found["tape.hidden"][d]
        previous = np.concatenate([h[1:], h_0[d : d + 1]]) if d else np.concatenate([h_0[d : d + 1], h[:-1]])
        steps = {"bias_ih" + suffix: gates.sum(axis=1)}
        if kind not in NORMALISED:  # normalised products have gradients of their own
            steps["weight_ih" + suffix] = np.einsum("tbg,tbi->tgi", gates, problem.x)
        if kind not in ("gru", "gru_original", *NORMALISED):  # their recurrent part has a different gradient
            steps["weight_hh" + suffix] = np.einsum("tbg,tbh->tgh", gates, previous)
            steps["bias_hh" + suffix] = gates.sum(axis=1)
        for name, step in steps.items():
            assert_close(found["parameters"][name], step.sum(axis=0), problem.bound, name)
            norms = np.sqrt((step.reshape(problem.T, -1) ** 2).sum(axis=1))
            assert_close(found["parameter_norms"][name], norms, problem.bound, name)


@pytest.mark.parametrize("memory", ["full", "checkpoint"])
def test_what_each_sequence_adds_to_the_gradients(kind, memory):
    """`products` to that of weight_ih, `gates` to that of bias_ih: equal to a backward of the sequence alone."""
    problem = Problem(kind, T=9, B=4, L=2, D=2)
    layer, lengths, x = problem.layer(), problem.lengths, problem.x.copy()
    x[np.arange(9)[:, None] >= lengths] = np.nan
    tape = layer.forward(x, problem.state, lengths, memory=memory)
    grads = tape.backward(problem.d_output, timesteps=("hidden", "products", "gates"), truncate=4, clip=0.5)
    full = layer.forward(x, problem.state, lengths)
    below = [np.nan_to_num(x)] * 2 + [np.concatenate(full.hidden[:2], axis=2)] * 2
    for row, suffix in enumerate(("_l0", "_l0_reverse", "_l1", "_l1_reverse")):
        weights = np.einsum("tbg,tbi->bgi", grads.products[row], below[row])
        biases = grads.gates[row].sum(axis=0)
        for b in range(4):
            state = tuple(s[:, b] for s in problem.state) if STATES[kind] == 2 else problem.state[:, b]
            alone = layer.forward(x[:, b], state, lengths[b])
            expected = alone.backward(problem.d_output[:, b], truncate=4, clip=0.5).parameters
            for found, name in ((weights[b], "weight_ih"), (biases[b], "bias_ih")):
                assert_close(found, expected[name + suffix], problem.bound, name, floor=np.abs(grads.hidden).max())


def test_products_are_the_gates_but_for_layer_normalisation(kind):
    problem = Problem(kind, T=9, B=4)
    tape = problem.layer().forward(problem.x)
    alone = tape.backward(problem.d_output, timesteps="products")
    with pytest.raises(AttributeError, match="gates"):
        _ = alone.gates
    both = tape.backward(problem.d_output, timesteps=("products", "gates"))
    assert_same_bits(alone.products, both.products)
    assert np.array_equal(both.products, both.gates) == (kind not in NORMALISED)


@pytest.mark.per_level
@pytest.mark.amx
def test_asking_for_timesteps_changes_no_other_result(kind):
    problem = Problem(kind, T=20, B=5, H=24, L=2, D=2, dtype="float32")
    tape = problem.layer().forward(problem.x)
    everything = tape.backward(**problem.loss, timesteps=TIMESTEPS)
    nothing = tape.backward(**problem.loss, timesteps=())
    for name in ("input", "parameters", "initial_state"):
        assert_same_bits(getattr(nothing, name), getattr(everything, name), name)


def test_what_was_not_asked_for_says_how_to_ask(kind):
    tape = Problem(kind).layer().forward(Problem(kind).x)
    grads = tape.backward(Problem(kind).d_output, timesteps=())
    for name in TIMESTEPS:
        with pytest.raises(AttributeError, match=f"timesteps.*{name}|{name}.*timesteps"):
            getattr(grads, name)
    with pytest.raises(AttributeError, match="clip="):
        _ = grads.clipped
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = grads.no_such_thing


@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu", "gru"])
def test_cells_without_c_accept_the_word_and_have_none(kind):
    problem = Problem(kind)
    tape = problem.layer().forward(problem.x)
    grads = tape.backward(problem.d_output, timesteps=("hidden", "cell"))
    for holder in (tape, grads):
        with pytest.raises(AttributeError, match="cell"):
            _ = holder.cell


def test_a_default_backward_gives_hidden_and_cell():
    problem = Problem("lstm")
    grads = problem.layer().forward(problem.x).backward(problem.d_output)
    assert grads.hidden.shape == grads.cell.shape == (1, problem.T, problem.B, problem.H)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_check_finite_names_the_first_in_the_backwards_order(kind, bad):
    """That is the last layer's latest timestep."""
    problem = Problem(kind, T=9, L=2)
    tape = problem.layer().forward(problem.x)
    d_output = problem.d_output.copy()
    d_output[[3, 6], 1, 2] = bad
    with pytest.raises(FloatingPointError) as error:
        tape.backward(d_output, check_finite=True)
    for words in ("layer 1", "timestep 6", "hidden"):
        assert words in str(error.value), f"{words!r} is not in: {error.value}"
    tape.backward(d_output)


def test_check_finite_finds_nothing_where_all_is_finite(kind):
    """NaN in the padding does not count."""
    problem = Problem(kind, L=2, D=2)
    x = problem.x.copy()
    x[problem.lengths[1] :, 1] = np.nan
    tape = problem.layer().forward(x, lengths=problem.lengths)
    checked = tape.backward(**problem.loss, check_finite=True)
    assert_same_bits(checked.parameters, tape.backward(**problem.loss).parameters)


# The source of a NaN


def checked(tape, *loss, **losses):
    """The message of `check_finite`."""
    with pytest.raises(FloatingPointError) as error:
        tape.backward(*loss, **losses, check_finite=True)
    return str(error.value)


MEMORY = pytest.mark.parametrize("memory", ["full", "states", "checkpoint", 2])


@MEMORY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_check_finite_names_the_step_of_x(kind, memory, bad):
    """All later states and all earlier gradients may be NaN too; an infinity is found even if a tanh hides it."""
    problem = Problem(kind, T=9, B=3, L=2, D=2)
    x = problem.x.copy()
    x[4, 2, 0], x[6, 1, 0] = bad, bad
    tape = problem.layer().forward(x, memory=memory)
    assert checked(tape, problem.d_output) == "x is not finite at timestep 4 of layer 0, in sequence 2"
    alone = problem.layer().forward(x[:, 2], memory=memory)
    assert checked(alone, problem.d_output[:, 2]) == "x is not finite at timestep 4 of layer 0"


@MEMORY
@pytest.mark.parametrize("row", range(4))
def test_check_finite_names_the_initial_state(kind, memory, row):
    problem = Problem(kind, T=9, B=3, L=2, D=2)
    for which, name in enumerate(("hidden", "cell")[: STATES[kind]]):
        states = [state.copy() for state in (problem.state if STATES[kind] == 2 else (problem.state,))]
        states[which][row, 2, 0] = np.nan
        state = tuple(states) if STATES[kind] == 2 else states[0]
        tape = problem.layer().forward(problem.x, state, [9, 9, 6], memory=memory)
        place = f"timestep 5 of layer {row // 2}, reverse direction" if row % 2 else f"timestep 0 of layer {row // 2}"
        said = checked(tape, problem.d_output)
        assert said.startswith(f"the initial {name} state is not finite, and so ")
        assert said.endswith(f" at {place}, in sequence 2")


@MEMORY
@pytest.mark.parametrize("suffix", ["_l0", "_l0_reverse", "_l1", "_l1_reverse"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_check_finite_names_the_parameter(kind, memory, suffix, bad):
    """Every step reads it, so the NaN enters at the first step of its direction."""
    problem = Problem(kind, T=9, B=3, L=2, D=2)
    layer = problem.layer()
    layer.parameters["weight_ih" + suffix][0, 0] = bad
    said = checked(layer.forward(problem.x, memory=memory), problem.d_output)
    assert said.startswith(f"parameter weight_ih{suffix} is not finite")
    if np.isnan(bad):
        step, reverse = (8, ", reverse direction") if suffix.endswith("reverse") else (0, "")
        assert said.endswith(f"at timestep {step} of layer {suffix[2]}{reverse}, in sequence 0")


@pytest.mark.parametrize("row", [2, 3])
def test_check_finite_names_the_incoming_gradient(kind, row):
    """The latest step in the order of the direction, at which the backward meets it first."""
    problem = Problem(kind, T=9, B=3, L=2, D=2)
    lengths, layer = [9, 7, 5], problem.layer()
    place = f"of layer 1{', reverse direction' if row == 3 else ''}, in sequence 1"
    d_output = problem.d_output.copy()
    d_output[8, 1] = np.nan  # padding
    d_output[[2, 4], 1, -1 if row == 3 else 0] = np.nan
    said = checked(layer.forward(problem.x, lengths=lengths), d_output)
    assert said == f"d_output is not finite, and so the gradient of hidden at timestep {2 if row == 3 else 4} {place}"

    last = layer.forward(problem.x, lengths=lengths, output="last")
    d_last, final = np.ones_like(last.output), f"timestep {0 if row == 3 else 6} {place}"
    d_last[1, -1 if row == 3 else 0] = np.inf
    assert checked(last, d_last) == f"d_output is not finite, and so the gradient of hidden at {final}"

    for which, name in enumerate(("hidden", "cell")[: STATES[kind]]):
        states = [np.zeros_like(state) for state in (problem.state if STATES[kind] == 2 else (problem.state,))]
        states[which][row, 1, 0] = np.nan
        d_final = tuple(states) if STATES[kind] == 2 else states[0]
        said = checked(layer.forward(problem.x, lengths=lengths), d_final_state=d_final)
        index = f"[{which}]" if STATES[kind] == 2 else ""
        assert said == f"d_final_state{index} is not finite, and so the gradient of {name} at {final}"

    if STATES[kind] == 2:
        d_cell = problem.d_cell.copy()
        d_cell[row - 2, 3, 1, 0] = np.nan
        said = checked(layer.forward(problem.x, lengths=lengths), d_cell=d_cell)
        place = place.replace("layer 1", "layer 0")
        assert said == f"d_cell is not finite, and so the gradient of cell at timestep 3 {place}"


@MEMORY
def test_check_finite_names_the_step_that_overflows(memory):
    """From 1 the 128th doubling leaves float32, forward as backward."""
    layer = tt.RNN(1, 1, nonlinearity="relu", bias=False)
    layer.parameters["weight_hh_l0"][...], layer.parameters["weight_ih_l0"][...] = 2, 0
    ones, x = np.ones((1, 1, 1), np.float32), np.zeros((140, 1, 1), np.float32)
    tape = layer.forward(x, ones, memory=memory)
    assert checked(tape, np.ones_like(tape.output)) == "hidden overflows at timestep 127 of layer 0, in sequence 0"
    tape = layer.forward(x, ones * np.float32(2.0**-20), memory=memory)
    d_output = np.zeros_like(tape.output)
    d_output[135] = 1
    said = checked(tape, d_output)
    assert said == f"the gradient of hidden overflows at timestep {135 - 128} of layer 0, in sequence 0"


@pytest.mark.parametrize("memory", ["full", 3])
def test_check_finite_where_an_episode_begins_beside_a_state_that_is_kept(memory):
    """In reverse, a reset at step 6 makes step 5 start from zero, not from the 2^100 that is stored there."""
    layer = tt.RNN(1, 1, nonlinearity="relu", bias=False, bidirectional=True)
    for name, array in layer.parameters.items():
        array[...] = {"weight_hh_l0_reverse": 2.0**20, "weight_ih_l0_reverse": 1}.get(name, 0)
    x, resets = np.ones((12, 1, 1), np.float32), np.zeros((12, 1), bool)
    x[4], resets[6] = 2.0**110, True
    tape = layer.forward(x, resets=resets, memory=memory)
    said = checked(tape, np.zeros_like(tape.output))
    assert said == "hidden overflows at timestep 3 of layer 0, reverse direction, in sequence 0"
